#include "call_counts/call_counts.h"

#include "base/aside.h"
#include "state/state.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <c10/util/Logging.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/profiler/orchestration/observer.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace gradext::call_counts {
namespace {

// Bytes that torch's allocators gave out and took back between start and stop. What was there
// before is not known, so that freeing it counts for nothing.
class MemoryCensus final : public torch::profiler::impl::ProfilerStateBase {
 public:
  // A profiler's state, though it profiles nothing: torch casts whatever lies in this slot to that
  // type.
  MemoryCensus()
      : ProfilerStateBase(
            torch::profiler::impl::ProfilerConfig(
                torch::profiler::impl::ProfilerState::Disabled,
                /*report_input_shapes=*/false,
                /*profile_memory=*/true)) {}

  torch::profiler::impl::ActiveProfilerType profilerType() override {
    return torch::profiler::impl::ActiveProfilerType::NONE;
  }

  void reportMemoryUsage(
      void* address,
      int64_t bytes,
      size_t /*total_allocated*/,
      size_t /*total_reserved*/,
      c10::Device device) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    Device& on = device.is_cpu() ? cpu_ : accelerator_;
    if (bytes >= 0) {
      on.blocks[address] = bytes;
      on.now += bytes;
      on.peak = std::max(on.peak, on.now);
      return;
    }
    const auto found = on.blocks.find(address);
    if (found != on.blocks.end()) {
      on.now -= found->second;
      on.blocks.erase(found);
    }
  }

  std::pair<int64_t, int64_t> peaks() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {cpu_.peak, accelerator_.peak};
  }

 private:
  struct Device {
    std::unordered_map<void*, int64_t> blocks;
    int64_t now = 0, peak = 0;
  };
  std::mutex mutex_;
  Device cpu_, accelerator_;
};

struct Counts {
  std::atomic<int64_t> ops{0}, bumps{0}, views{0}, inference{0};
};
Counts counts;  // of the one census that is under way
std::atomic<bool> counting{false};

// One op that is running. An op that is made of others returns what they returned and writes what
// they wrote: what was counted below is not counted again.
struct Frame final : at::ObserverContext {
  struct Written {
    c10::VariableVersion counter;  // an owner: its address is not used for another meanwhile
    int64_t before;
    int64_t below = 0;
  };
  std::vector<const c10::TensorImpl*> inputs;
  std::vector<Written> written;
  // Held weakly: another tensor at the same address is not taken for this one.
  struct Result {
    c10::weak_intrusive_ptr<c10::TensorImpl> tensor;
    bool is_view;
  };
  std::vector<Result> results;  // its own and those of the ops below it
  std::vector<std::pair<c10::VariableVersion, int64_t>> bumps_below;
  Frame* above = nullptr;
};
thread_local Frame* running = nullptr;

const void* identity(const c10::VariableVersion& counter) {
  const void* address = nullptr;
  std::memcpy(&address, static_cast<const void*>(&counter), sizeof(address));
  return address;
}

template <typename Do>
void each_tensor(const c10::IValue& value, const Do& action) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) {
      action(value.toTensor());
    }
  } else if (value.isList()) {
    for (const c10::IValue& item : value.toListRef()) {
      each_tensor(item, action);
    }
  }
}

std::unique_ptr<Frame> frame_of(const at::RecordFunction& fn) {
  auto frame = std::make_unique<Frame>();
  counts.ops++;
  const auto inputs = fn.inputs();
  const std::optional<c10::FunctionSchema> schema = fn.operator_schema();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool writes = schema && i < schema->arguments().size() &&
                        schema->arguments()[i].alias_info() &&
                        schema->arguments()[i].alias_info()->isWrite();
    each_tensor(inputs[i], [&](const at::Tensor& tensor) {
      const c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
      frame->inputs.push_back(impl);
      const c10::VariableVersion& counter = impl->version_counter();
      if (!writes || !counter.enabled()) {
        return;
      }
      for (const Frame::Written& known : frame->written) {
        if (identity(known.counter) == identity(counter)) {
          return;
        }
      }
      frame->written.push_back({counter, static_cast<int64_t>(counter.current_version())});
    });
  }
  frame->above = running;
  running = frame.get();
  return frame;
}

std::unique_ptr<at::ObserverContext> starts(const at::RecordFunction& fn) {
  std::unique_ptr<Frame> frame;
  base::safely([&] {
    if (counting) {
      frame = frame_of(fn);
    }
  });
  return frame;
}

void count_bumps(Frame& frame) {
  for (Frame::Written& written : frame.written) {
    int64_t below = 0;
    for (const auto& [counter, bumps] : frame.bumps_below) {
      below += identity(counter) == identity(written.counter) ? bumps : 0;
    }
    const int64_t all = static_cast<int64_t>(written.counter.current_version()) - written.before;
    counts.bumps += std::max<int64_t>(0, all - below);
    if (frame.above != nullptr && all > below) {
      frame.bumps_below.emplace_back(written.counter, all - below);
    }
  }
  if (frame.above != nullptr) {
    auto& above = frame.above->bumps_below;
    above.insert(above.end(), frame.bumps_below.begin(), frame.bumps_below.end());
  }
}

void count_results(const at::RecordFunction& fn, Frame& frame) {
  for (const c10::IValue& output : fn.outputs()) {
    each_tensor(output, [&](const at::Tensor& tensor) {
      c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
      const auto& inputs = frame.inputs;
      if (std::find(inputs.begin(), inputs.end(), impl) != inputs.end()) {
        return;  // an in-place op returns what it was given
      }
      const bool is_view = state::backward_view_meta(*impl) != nullptr;
      const auto below = std::find_if(
          frame.results.begin(), frame.results.end(), [impl](const Frame::Result& result) {
            return result.tensor._unsafe_get_target() == impl;
          });
      if (below == frame.results.end()) {
        counts.views += is_view;
        counts.inference += state::is_inference(*impl);
        frame.results.push_back(
            {c10::weak_intrusive_ptr<c10::TensorImpl>(tensor.getIntrusivePtr()), is_view});
      } else if (is_view && !below->is_view) {
        // Made by an op below, where nothing is tracked, and tracked on its way up.
        counts.views += 1;
        below->is_view = true;
      }
    });
  }
  if (frame.above != nullptr) {
    auto& above = frame.above->results;
    above.insert(
        above.end(),
        std::make_move_iterator(frame.results.begin()),
        std::make_move_iterator(frame.results.end()));
  }
}

void ends(const at::RecordFunction& fn, at::ObserverContext* context) {
  auto* frame = static_cast<Frame*>(context);
  if (frame == nullptr) {
    return;
  }
  running = frame->above;
  base::safely([&] {
    count_bumps(*frame);
    count_results(fn, *frame);
  });
}

// Torch's allocator warns on stderr when a block is freed of which the census was not told. It is
// told of none that is older than itself, so that this says nothing to anybody.
class QuietAllocator {
 public:
#ifndef C10_USE_GLOG
  QuietAllocator() : before_(FLAGS_caffe2_log_level) {
    FLAGS_caffe2_log_level = std::max(before_, kErrors);
  }
  ~QuietAllocator() {
    FLAGS_caffe2_log_level = before_;
  }

 private:
  static constexpr int kErrors = 2;
  int before_;
#endif
};

// What is under way between start() and stop(), on one thread.
class Census {
 public:
  void start() {
    if (counting.exchange(true)) {
      throw py::value_error("a census is under way already; only one can count at a time");
    }
    counts.ops = counts.bumps = counts.views = counts.inference = 0;
    running = nullptr;
    nodes_ = at::sequence_number::peek();
    // A profiler that is on finds its own state in this slot, without looking what it is.
    if (c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::PROFILER_STATE) == nullptr) {
      memory_ = std::make_shared<MemoryCensus>();
      memory_slot_.emplace(c10::DebugInfoKind::PROFILER_STATE, memory_);
      quiet_ = std::make_unique<QuietAllocator>();
    }
    handle_ = at::addThreadLocalCallback(
        at::RecordFunctionCallback(&starts, &ends)
            .needsInputs(true)
            .needsOutputs(true)
            .scopes({at::RecordScope::FUNCTION}));
  }

  py::dict stop() {
    if (!handle_) {
      throw py::value_error("no census is under way here");
    }
    py::dict found;
    if (memory_) {
      const auto [cpu, accelerator] = memory_->peaks();
      found["peak_cpu_bytes"] = cpu;
      found["peak_accelerator_bytes"] = accelerator;
    }
    found["ops"] = counts.ops.load();
    found["nodes"] = at::sequence_number::peek() - nodes_;
    found["version_bumps"] = counts.bumps.load();
    found["views"] = counts.views.load();
    found["inference_tensors"] = counts.inference.load();
    end();
    return found;
  }

  ~Census() {
    if (handle_) {
      end();
    }
  }

 private:
  void end() {
    at::removeCallback(*handle_);
    handle_.reset();
    memory_slot_.reset();
    memory_.reset();
    quiet_.reset();
    counting = false;
  }

  std::optional<at::CallbackHandle> handle_;
  std::shared_ptr<MemoryCensus> memory_;
  std::optional<c10::DebugInfoGuard> memory_slot_;
  std::unique_ptr<QuietAllocator> quiet_;
  uint64_t nodes_ = 0;
};

}  // namespace

void bind(py::module_& m) {
  py::class_<Census>(m, "Census")
      .def(py::init<>())
      .def("start", &Census::start)
      .def("stop", &Census::stop);
}

}  // namespace gradext::call_counts
