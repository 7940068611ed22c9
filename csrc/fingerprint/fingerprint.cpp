// Checks and dispatch: which tensors have a fingerprint, on which device it is computed, and what
// the ops say for all other kinds.
#include "fingerprint/fingerprint.h"

#include "fingerprint/fingerprint_cpu.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <vector>

#ifdef GRADEXT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace gradext::fingerprint {
namespace {

const c10::TensorImpl* impl_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.unsafeGetTensorImpl() : nullptr;
}

// The device of all of them; one line about the first that is elsewhere or has no bytes.
c10::Device common_device(at::TensorList tensors, bool is_list) {
  std::optional<c10::Device> common;
  const auto ahead = [&](size_t i) { return i < tensors.size() ? impl_of(tensors[i]) : nullptr; };
  const auto which = [&](size_t i) {
    return is_list ? "item " + std::to_string(i) + ": " : std::string();
  };
  for (size_t i = 0; i < tensors.size(); ++i) {
    prefetch_source(ahead(i + kTensorAhead), ahead(i + kStorageAhead));
    const char* reason = refusal(impl_of(tensors[i]));
    TORCH_CHECK_VALUE(reason == nullptr, "gradext::fingerprint: ", which(i), reason);
    const c10::Device device = device_of(*impl_of(tensors[i]));
    TORCH_CHECK_VALUE(
        !common.has_value() || *common == device,
        "gradext::fingerprint_list: item 0 is on ",
        *common,
        ", ",
        which(i),
        "on ",
        device,
        "; one call takes one device");
    common = device;
  }
  return common.value_or(c10::Device(c10::kCPU));
}

Sources describe(at::TensorList tensors) {
  Sources sources;
  sources.list.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    add_source(*impl_of(tensor), sources);
  }
  return sources;
}

#ifdef GRADEXT_WITH_CUDA
// The place of a stream in the resident scratch of its device; -1 where there is none. Streams that
// are not torch's own have none: another stream may come to have their handle.
int resident_place(const c10::cuda::CUDAStream& stream) {
  const c10::StreamId id = stream.id();
  if (id != 0 && id % 2 == 0) {
    return -1;
  }
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, std::vector<c10::StreamId>> streams;
  std::lock_guard<std::mutex> lock(mutex);
  std::vector<c10::StreamId>& known = streams[stream.device_index()];
  const auto found = std::find(known.begin(), known.end(), id);
  const auto place = found - known.begin();
  if (place >= kResidentPlaces) {
    return -1;
  }
  if (found == known.end()) {
    known.push_back(id);
  }
  return static_cast<int>(place);
}

at::Tensor on_cuda(const Sources& sources, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  const c10::cuda::CUDAStream current = c10::cuda::getCurrentCUDAStream();
  const cudaStream_t stream = current.stream();
  const auto count = static_cast<int64_t>(sources.list.size());
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  at::Tensor out = at::empty({count, 2}, options);
  auto* results = out.mutable_data_ptr<int64_t>();
  // In a capture the arguments of a launch are kept by the graph; a table in memory would have to
  // outlive it. The graph may run beside other work of its stream: its scratch is its own.
  const bool capturing =
      c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  const std::vector<Chunk> chunks =
      pack(sources, capturing ? kArgumentWords : std::numeric_limits<int64_t>::max());
  const auto words = static_cast<int64_t>(chunks.empty() ? 0 : chunks.front().words.size());
  // A tensor has 64 dimensions at most, which fit.
  const bool by_arguments = capturing || words <= kArgumentWords;
  const int place =
      !capturing && by_arguments && count <= kResidentTensors ? resident_place(current) : -1;
  at::Tensor scratch;
  uint64_t* slots = nullptr;
  if (place < 0) {
    scratch = at::empty({count, 3}, options);
    slots = reinterpret_cast<uint64_t*>(scratch.mutable_data_ptr<int64_t>());
    C10_CUDA_CHECK(cudaMemsetAsync(slots, 0, sizeof(uint64_t) * 3 * count, stream));
  }
  if (count == 1) {
    const Entry entry = entry_at(chunks.front().table(), 0);
    if (is_plain(entry.form)) {
      const Plain plain{entry.data, entry.bytes, entry.facts};
      C10_CUDA_CHECK(launch_plain(plain, slots, place, results, stream));
      return out;
    }
  }
  if (by_arguments) {
    for (const Chunk& chunk : chunks) {
      C10_CUDA_CHECK(launch_arguments(
          chunk.words.data(),
          static_cast<int64_t>(chunk.words.size()),
          chunk.end - chunk.begin,
          chunk.blocks,
          slots != nullptr ? slots + 3 * chunk.begin : nullptr,
          place,
          results + 2 * chunk.begin,
          stream));
    }
    return out;
  }
  const Chunk& whole = chunks.front();
  // torch's pinned allocator does not hand the memory out again before the copy has ended.
  at::Tensor host = at::empty({words}, at::TensorOptions().dtype(at::kLong).pinned_memory(true));
  std::copy(whole.words.begin(), whole.words.end(), host.mutable_data_ptr<int64_t>());
  const at::Tensor table = host.to(device, at::kLong, /*non_blocking=*/true);
  C10_CUDA_CHECK(
      launch_table(table.const_data_ptr<int64_t>(), count, whole.blocks, slots, results, stream));
  return out;
}
#endif

at::Tensor compute(at::TensorList tensors, bool is_list) {
  const c10::Device device = common_device(tensors, is_list);
  const auto count = static_cast<int64_t>(tensors.size());
  const Sources sources = describe(tensors);
#ifdef GRADEXT_WITH_CUDA
  if (device.is_cuda()) {
    return on_cuda(sources, device);
  }
#endif
  TORCH_CHECK_NOT_IMPLEMENTED(
      device.is_cpu(), "gradext::fingerprint: no kernel for tensors on ", device);
  // Allocated past the dispatcher, so that no user's mode sees (or replaces) the result.
  at::Tensor out = at::detail::empty_cpu({count, 2}, at::TensorOptions().dtype(at::kLong));
  static_assert(sizeof(Value) == 2 * sizeof(int64_t));
  of_sources(sources, reinterpret_cast<Value*>(out.mutable_data_ptr<int64_t>()));
  return out;
}

at::Tensor fingerprint_meta(const at::Tensor& self) {
  return at::empty({2}, self.options().dtype(at::kLong).layout(at::kStrided));
}

at::Tensor fingerprint_list_meta(at::TensorList tensors) {
  const auto count = static_cast<int64_t>(tensors.size());
  return at::empty({count, 2}, at::TensorOptions().dtype(at::kLong).device(at::kMeta));
}

}  // namespace

at::Tensor fingerprint(const at::Tensor& tensor) {
  at::Tensor rows = compute(tensor, /*is_list=*/false);
  rows.unsafeGetTensorImpl()->set_sizes_contiguous({2});
  return rows;
}

at::Tensor fingerprint_list(at::TensorList tensors) {
  return compute(tensors, /*is_list=*/true);
}

// All devices and layouts: what has no bytes is refused in one line, by the same check. It also
// answers for an empty list, which has no device.
TORCH_LIBRARY_IMPL(gradext, CompositeExplicitAutograd, m) {
  m.impl("fingerprint", &fingerprint);
  m.impl("fingerprint_list", &fingerprint_list);
}

TORCH_LIBRARY_IMPL(gradext, Meta, m) {
  m.impl("fingerprint", &fingerprint_meta);
  m.impl("fingerprint_list", &fingerprint_list_meta);
}

// The result is integers: nothing to differentiate. The kernel sees negative and conjugate views as
// they are, not copies made for it.
#define GRADEXT_FALL_THROUGH(key)                                      \
  TORCH_LIBRARY_IMPL(gradext, key, m) {                                \
    m.impl("fingerprint", torch::CppFunction::makeFallthrough());      \
    m.impl("fingerprint_list", torch::CppFunction::makeFallthrough()); \
  }
GRADEXT_FALL_THROUGH(Autograd)
GRADEXT_FALL_THROUGH(Conjugate)
GRADEXT_FALL_THROUGH(Negative)
#undef GRADEXT_FALL_THROUGH

}  // namespace gradext::fingerprint
