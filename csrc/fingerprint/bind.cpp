// Lists of tensors from Python without the dispatcher, and what the tests need to see inside.
#include <torch/csrc/python_headers.h>  // before any standard header, as Python demands

#include "fingerprint/bind.h"

#include "fingerprint/blocks.h"
#include "fingerprint/fingerprint_cpu.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#ifdef GRADEXT_WITH_CUDA
#include <c10/cuda/CUDAGraphsC10Utils.h>
#endif

#include <algorithm>
#include <map>

namespace py = pybind11;

namespace gradext::fingerprint {
namespace {

// Reading less than this is over before another thread could have had the GIL.
constexpr int64_t kWithGil = 1 << 18;

const at::Tensor& unpack(py::handle object) {
  if (!THPVariable_Check(object.ptr())) {
    throw py::type_error(
        std::string("gradext.fingerprint: expected a torch.Tensor, got ") +
        Py_TYPE(object.ptr())->tp_name);
  }
  return THPVariable_Unpack(object.ptr());
}

const c10::TensorImpl* impl_behind(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.unsafeGetTensorImpl() : nullptr;
}

int64_t bytes_of(const Sources& sources) {
  int64_t bytes = 0;
  for (const Source& source : sources.list) {
    bytes += source.bytes;
  }
  return bytes;
}

void compute(const Sources& sources, Value* out) {
  if (bytes_of(sources) < kWithGil) {
    of_sources(sources, out);
  } else {
    py::gil_scoped_release release;
    of_sources(sources, out);
  }
}

// The values come back to the host, which a capture cannot wait for.
void refuse_capture() {
#ifdef GRADEXT_WITH_CUDA
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
    throw std::runtime_error(
        "gradext.fingerprint: a CUDA graph is being captured; use "
        "torch.ops.gradext.fingerprint_list, whose result stays on the device");
  }
#endif
}

// A few items ahead of item `i`, a pointer further each: the Python object, the tensor, its
// storage.
void prefetch_ahead(PyObject* items, py::ssize_t i, py::ssize_t count) {
  constexpr py::ssize_t kObject = 24;
  const auto impl_at = [&](py::ssize_t place) -> const c10::TensorImpl* {
    PyObject* item = place < count ? PyTuple_GET_ITEM(items, place) : nullptr;
    return item != nullptr && THPVariable_CheckExact(item)
               ? THPVariable_Unpack(item).unsafeGetTensorImpl()
               : nullptr;
  };
  if (i + kObject < count) {
    base::prefetch(PyTuple_GET_ITEM(items, i + kObject));
  }
  prefetch_source(impl_at(i + kTensorAhead), impl_at(i + kStorageAhead));
}

// What `values`, `dtypes`, `starts` and `sizes` of a list are: see _C.pyi.
py::tuple of_list(const py::object& tensors) {
  // A tuple of its own: with the GIL released another thread may empty the caller's list.
  const py::object held = py::reinterpret_steal<py::object>(PySequence_Tuple(tensors.ptr()));
  if (!held) {
    throw py::error_already_set();
  }
  const py::ssize_t count = PyTuple_GET_SIZE(held.ptr());
  py::array_t<uint64_t> values({count, py::ssize_t{2}});
  py::array_t<uint8_t> dtypes(count);
  py::array_t<int64_t> starts(count + 1);
  std::vector<int64_t> all_sizes;
  all_sizes.reserve(2 * count);
  Sources sources;
  sources.list.reserve(count);
  // Those elsewhere, by device: one launch each.
  std::map<std::pair<int, int>, std::vector<py::ssize_t>> elsewhere;
  uint8_t* dtype = dtypes.mutable_data();
  int64_t* start = starts.mutable_data();
  *start = 0;
  for (py::ssize_t i = 0; i < count; ++i) {
    PyObject* item = PyTuple_GET_ITEM(held.ptr(), i);
    prefetch_ahead(held.ptr(), i, count);
    if (!THPVariable_Check(item)) {
      throw py::type_error(
          "gradext.fingerprint: item " + std::to_string(i) + " is a " + Py_TYPE(item)->tp_name +
          ", expected a torch.Tensor");
    }
    const c10::TensorImpl* impl = impl_behind(THPVariable_Unpack(item));
    if (const char* reason = refusal(impl)) {
      throw py::value_error("gradext.fingerprint: item " + std::to_string(i) + ": " + reason);
    }
    const c10::IntArrayRef sizes = sizes_of(*impl);
    all_sizes.insert(all_sizes.end(), sizes.begin(), sizes.end());
    dtype[i] = static_cast<uint8_t>(impl->dtype().toScalarType());
    start[i + 1] = static_cast<int64_t>(all_sizes.size());
    if (const c10::Device device = device_of(*impl); !device.is_cpu()) {
      elsewhere[{static_cast<int>(device.type()), device.index()}].push_back(i);
    }
    add_source(*impl, sources);
  }
  auto* out = reinterpret_cast<Value*>(values.mutable_data());
  if (elsewhere.empty()) {
    compute(sources, out);
  } else {
    refuse_capture();
    for (const auto& [device, places] : elsewhere) {
      std::vector<at::Tensor> group;
      for (const py::ssize_t i : places) {
        group.push_back(THPVariable_Unpack(PyTuple_GET_ITEM(held.ptr(), i)));
      }
      py::gil_scoped_release release;
      const at::Tensor rows = fingerprint_list(group).to(at::kCPU);
      const auto* row = reinterpret_cast<const Value*>(rows.const_data_ptr<int64_t>());
      for (const py::ssize_t i : places) {
        out[i] = *row++;
        sources.list[i].bytes = -1;
      }
    }
    Sources here;
    here.layouts = sources.layouts;
    std::vector<py::ssize_t> places;
    for (py::ssize_t i = 0; i < count; ++i) {
      if (sources.list[i].bytes >= 0) {
        here.list.push_back(sources.list[i]);
        places.push_back(i);
      }
    }
    std::vector<Value> found(places.size());
    compute(here, found.data());
    for (size_t k = 0; k < places.size(); ++k) {
      out[places[k]] = found[k];
    }
  }
  py::array_t<int64_t> sizes(static_cast<py::ssize_t>(all_sizes.size()));
  std::copy(all_sizes.begin(), all_sizes.end(), sizes.mutable_data());
  return py::make_tuple(values, dtypes, starts, sizes);
}

// (low, high) of one tensor on the CPU.
py::tuple of_one(py::handle object) {
  const c10::TensorImpl* impl = impl_behind(unpack(object));
  if (const char* reason = refusal(impl)) {
    throw py::value_error(std::string("gradext.fingerprint: ") + reason);
  }
  if (!device_of(*impl).is_cpu()) {
    throw py::value_error("gradext.fingerprint: not a CPU tensor");
  }
  const py::object held = py::reinterpret_borrow<py::object>(object);
  Sources sources;
  add_source(*impl, sources);
  Value value;
  compute(sources, &value);
  return py::make_tuple(value.low, value.high);
}

py::object refusal_of(py::handle object) {
  const char* reason = refusal(impl_behind(unpack(object)));
  return reason ? py::object(py::str(reason)) : py::none();
}

// What the kernel for lists computes with runs of `each` blocks for teams of `size` groups, walked
// here. The teams take their turns in an order of their own, as they would.
py::array_t<uint64_t> emulate(
    const std::vector<at::Tensor>& tensors, int64_t each, int64_t limit, int64_t size) {
  Sources sources;
  for (const at::Tensor& tensor : tensors) {
    const char* reason = refusal(impl_behind(tensor));
    if (reason != nullptr || each < 1 || size < 1) {
      throw py::value_error(reason ? reason : "each and size must be at least 1");
    }
    add_source(*impl_behind(tensor), sources);
  }
  py::array_t<uint64_t> values({static_cast<py::ssize_t>(tensors.size()), py::ssize_t{2}});
  auto* out = reinterpret_cast<Value*>(values.mutable_data());
  for (const Chunk& chunk : pack(sources, limit)) {
    const Table table = chunk.table();
    std::vector<Sums> sums(table.count);
    std::vector<int64_t> done(table.count);
    const auto settle = [&](int64_t index, const Entry& entry, const Sums& part, int64_t blocks) {
      sums[index].low += part.low;
      sums[index].high += part.high;
      done[index] += blocks;
      if (done[index] == blocks_of(entry.bytes)) {
        out[chunk.begin + index] = finish(sums[index], entry.facts);
      }
    };
    const int64_t teams = (table.blocks + each - 1) / each;
    for (int64_t turn = 0; turn < teams; ++turn) {
      const int64_t team = turn % 2 ? turn / 2 : teams - 1 - turn / 2;
      const Run run = run_of(table, team, each);
      for (int64_t group = 0; group < size; ++group) {
        for (int thread = 0; thread < kGroup; ++thread) {
          // Blocks count once for all the threads that read them, with the last.
          const bool is_last = thread == kGroup - 1;
          if (run.in_one) {
            const Entry entry = entry_at(table, run.index);
            const Sums part = add_turns(entry, run, group, size, thread);
            const bool ends = is_last && group == size - 1;
            settle(run.index, entry, part, ends ? run.end - run.begin : 0);
          } else {
            walk(
                table,
                run,
                group,
                size,
                thread,
                [&](int64_t index, const Entry& entry, const Sums& part, int64_t blocks) {
                  settle(index, entry, part, is_last ? blocks : 0);
                });
          }
        }
      }
    }
  }
  return values;
}

// The same for the kernel of one plain tensor, on a device that holds `teams` teams of `size`
// groups; None where it is not plain. The blocks that the teams count must be all there are.
py::object emulate_plain(const at::Tensor& tensor, int64_t teams, int64_t size) {
  const char* reason = refusal(impl_behind(tensor));
  if (reason != nullptr || teams < 1 || size < 1) {
    throw py::value_error(reason ? reason : "teams and size must be at least 1");
  }
  Sources sources;
  add_source(*impl_behind(tensor), sources);
  const std::vector<Chunk> chunks = pack(sources, std::numeric_limits<int64_t>::max());
  const Entry entry = entry_at(chunks.front().table(), 0);
  if (!is_plain(entry.form)) {
    return py::none();
  }
  const Plain plain{entry.data, entry.bytes, entry.facts};
  const Turns turns = turns_for(blocks_of(plain.bytes), teams, size);
  Sums sums;
  int64_t done = 0;
  for (int64_t team = 0; team < turns.teams; ++team) {
    for (int64_t group = 0; group < size; ++group) {
      for (int thread = 0; thread < kGroup; ++thread) {
        const Sums part = add_turns(plain, turns, team, group, thread);
        sums.low += part.low;
        sums.high += part.high;
      }
    }
    done += blocks_in(turns, team);
  }
  if (done != blocks_of(plain.bytes)) {
    throw std::logic_error("the teams count other blocks than there are");
  }
  const Value value = finish(sums, plain.facts);
  return py::make_tuple(value.low, value.high);
}

}  // namespace

void bind(py::module_& m) {
  m.def("fingerprint", &of_one, py::arg("tensor"));
  m.def("fingerprint_list", &of_list, py::arg("tensors"));
  m.def("fingerprint_refusal", &refusal_of, py::arg("tensor"));
}

void bind_testing(py::module_& m) {
  m.def(
      "fingerprint_emulate",
      &emulate,
      py::arg("tensors"),
      py::arg("each"),
      py::arg("limit") = int64_t{496},
      py::arg("size") = int64_t{1});
  m.def(
      "fingerprint_emulate_plain",
      &emulate_plain,
      py::arg("tensor"),
      py::arg("teams"),
      py::arg("size"));
  m.def("fingerprint_force_variant", &force_variant, py::arg("name"));
  m.def("fingerprint_variants", &variants);
  m.def("fingerprint_variant", &variant);
}

}  // namespace gradext::fingerprint
