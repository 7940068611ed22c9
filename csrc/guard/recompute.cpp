#include "guard/recompute.h"

#include "base/aside.h"
#include "fingerprint/fingerprint.h"
#include "graph/bind.h"
#include "graph/saved_items.h"
#include "guard/guard.h"
#include "guard/sketch.h"
#include "guard/switch.h"
#include "journal/journal.h"
#include "stacks/stacks.h"
#include "state/state.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <c10/core/TensorImpl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace gradext::guard {
namespace {

using fingerprint::Value;
using stacks::StackId;

struct Bytes {
  Value value;
  std::unique_ptr<Sketch> sketch;  // of a kind of numbers that rounds
  c10::ScalarType type = c10::ScalarType::Undefined;
};

// Where something was packed, and how many nodes its thread had made.
struct Place {
  StackId stack = 0;
  uint64_t sequence = 0;
};
// `own`: how many frames of gradext.recording.checkpoints are innermost.
Place here(int own) {
  StackId stack = stacks::capture_stack();
  for (; own > 0; --own) {
    stack = stacks::stack_parent(stack);
  }
  return Place{stacks::pinned(stack), at::sequence_number::peek()};
}

struct Pack {
  Place place;
  uint64_t order = 0;
  int64_t version = -1;
  bool requires_grad = false;
  c10::VariableVersion counter;  // held, so that its address is not given to another
  std::optional<Bytes> bytes;
};

// What kernels hand from forward to backward as they please (an RNN's workspace) is a flat row of
// bytes, some of which nobody has written.
bool is_opaque(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kByte && tensor.dim() == 1;
}

std::optional<Bytes> bytes_of(const at::Tensor& tensor) {
  if (!fingerprint::can_fingerprint(tensor) || is_opaque(tensor)) {
    return std::nullopt;
  }
  Bytes bytes;
  bytes.value = fingerprint::of_cpu(tensor);
  bytes.type = tensor.scalar_type();
  auto sketch = std::make_unique<Sketch>();
  if (sketch_of(tensor, *sketch)) {
    bytes.sketch = std::move(sketch);
  }
  return bytes;
}

using Packed = std::vector<Pack>;

// Bytes that are to be read when the op that runs now has ended.
struct Unread {
  std::shared_ptr<Packed> packs;
  size_t index;
  at::Tensor tensor;
};
std::vector<Unread>& unread() {
  static thread_local std::vector<Unread> tensors;
  return tensors;
}

const at::Tensor& unpack(py::handle object) {
  if (!base::is_tensor(object.ptr())) {
    throw py::type_error("expected a torch.Tensor");
  }
  return THPVariable_Unpack(object.ptr());
}

// What one forward of a checkpoint packed.
class Packs {
 public:
  Packs() : packs_(std::make_shared<Packed>()), forward_(start(2)) {}

  void note(py::handle object) {
    base::safely([&] { add(object); });
  }
  // A recompute begins; and has packed one tensor more.
  void begin() {
    base::safely([&] {
      recompute_ = start(1);
      recomputed_.clear();
    });
  }
  void count_one() {
    base::safely([&] { recomputed_.push_back(here(1)); });
  }

  size_t count() const {
    return packs_->size();
  }
  // Where the forward began.
  StackId begun() const {
    return forward_.place.stack;
  }
  // Of the forward, and of the latest recompute: the journal's order, thread, sequence number and
  // stack when it began, and the (stack, sequence number) of each pack.
  py::tuple forward() const {
    std::vector<Place> places;
    for (const Pack& pack : *packs_) {
      places.push_back(pack.place);
    }
    return told(forward_, places);
  }
  py::tuple recompute() const {
    return told(recompute_, recomputed_);
  }

  // `object` was recomputed for the pack of this number: None if it is what was packed then, else
  // the facts that checkpoints.Difference is made of, by which one that was explained before is
  // known.
  py::object compare(size_t index, py::handle object) const {
    const at::Tensor& tensor = unpack(object);
    const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
    if (index >= packs_->size() || state::is_stand_in(impl) || state::stands_on_another(impl)) {
      return py::none();
    }
    const Pack& pack = (*packs_)[index];
    const int64_t version = state::version(impl);
    const bool is_moved = pack.version >= 0 && version >= 0 && version != pack.version;
    const bool can_compare =
        pack.bytes && is_on() && !in_guard() && fingerprint::can_fingerprint(tensor);
    if (can_compare && is_alike(*pack.bytes, tensor)) {
      return py::none();
    }
    if (!can_compare && !is_moved) {
      return py::none();
    }
    const void* counter = state::counter_address(impl);
    const bool is_same_tensor =
        pack.counter.enabled() && counter != nullptr && counter == address_of(pack.counter);
    const bool has_sizes = state::has_sizes(impl) && !state::is_wrapper_subclass(impl);
    py::tuple sizes(has_sizes ? impl.sizes().size() : 0);
    for (size_t d = 0; d < sizes.size(); ++d) {
      sizes[d] = impl.sizes()[d];
    }
    return py::make_tuple(
        index,
        pack.place.stack,
        pack.order,
        is_moved,
        can_compare,
        is_same_tensor,
        pack.requires_grad,
        py::cast(c10::typeMetaToScalarType(impl.dtype())),
        std::move(sizes));
  }
  // What is said of a tensor that compare() has told of, as of one that a node has saved.
  py::dict saved(size_t index, py::handle object) const {
    graph::SavedFacts facts;
    facts.kind = "hooked";
    facts.tensor = unpack(object);
    const int64_t version = index < packs_->size() ? (*packs_)[index].version : 0;
    facts.saved_version = static_cast<uint32_t>(std::max<int64_t>(version, 0));
    return graph::facts_of_saved(facts);
  }

 private:
  struct Start {
    uint64_t order = 0;
    uint64_t thread = 0;
    Place place;
  };
  static Start start(int own) {
    return Start{journal::Journal::get().order(), at::RecordFunction::currentThreadId(), here(own)};
  }
  static py::tuple told(const Start& start, const std::vector<Place>& places) {
    py::list out;
    for (const Place& place : places) {
      out.append(py::make_tuple(place.stack, place.sequence));
    }
    return py::make_tuple(
        start.order, start.thread, start.place.sequence, start.place.stack, std::move(out));
  }

  void add(py::handle object) {
    Pack pack;
    pack.place = here(1);
    pack.order = journal::Journal::get().order();
    const at::Tensor& tensor = unpack(object);
    const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
    if (!state::is_stand_in(impl) && !state::stands_on_another(impl)) {
      pack.version = state::version(impl);
      pack.counter = impl.version_counter();
      pack.requires_grad = state::requires_grad(impl);
      if (is_on() && !in_guard()) {
        if (is_in_op()) {
          unread().push_back(Unread{packs_, packs_->size(), tensor});
        } else {
          pack.bytes = bytes_of(tensor);
        }
      }
    }
    packs_->push_back(std::move(pack));
  }
  static bool is_alike(const Bytes& then, const at::Tensor& tensor) {
    if (fingerprint::of_cpu(tensor) == then.value) {
      return true;
    }
    Sketch now;
    return then.sketch && tensor.scalar_type() == then.type && sketch_of(tensor, now) &&
           are_close(*then.sketch, now, then.type);
  }
  // As state::counter_address() reads it of a tensor.
  static const void* address_of(const c10::VariableVersion& counter) {
    static_assert(sizeof(c10::VariableVersion) == sizeof(void*));
    const void* address = nullptr;
    std::memcpy(&address, static_cast<const void*>(&counter), sizeof(address));
    return address;
  }

  std::shared_ptr<Packed> packs_;
  Start forward_, recompute_;
  std::vector<Place> recomputed_;
};

// What pack hooks returned for tensors that backward does not read (a batch norm's running
// statistics in training), as addresses, of the nodes below the one that runs now, whose unpack
// hook has started the recompute. And whether that one is such a node: it holds its own mutex, so
// what it saved cannot be listed.
py::tuple unread_below() {
  py::set found;
  bool is_current = false, whole = true;
  if (const auto current = torch::autograd::get_current_node()) {
    for (const graph::GraphNode& at : graph::walk_graph({&*current}, 20'000, whole)) {
      if (!graph::has_unused(*at.node)) {
        continue;
      }
      bool is_busy = false;
      for (const graph::SavedItem& item : graph::saved_items(*at.node, &is_busy)) {
        // Of CTC's table only the part that belongs to a target is written.
        const bool is_partial = std::strcmp(item.attribute, "log_alpha") == 0;
        if (item.hooked_with != nullptr && (is_partial || is_unused(*at.node, item))) {
          found.add(py::int_(reinterpret_cast<uintptr_t>(item.hooked_with)));
        }
      }
      is_current |= is_busy;
    }
  }
  return py::make_tuple(std::move(found), is_current);
}

}  // namespace

bool has_unfinished_packs() {
  return !unread().empty();
}

void finish_packs() {
  std::vector<Unread> ready;
  ready.swap(unread());
  for (Unread& at : ready) {
    if (at.index < at.packs->size()) {
      (*at.packs)[at.index].bytes = bytes_of(at.tensor);
    }
  }
}

void bind_recompute(py::module_& m) {
  py::class_<Packs>(m, "checkpoint_packs")
      .def(py::init<>())
      .def("note", &Packs::note)
      .def("compare", &Packs::compare)
      .def("saved", &Packs::saved)
      .def("begin", &Packs::begin)
      .def("count_one", &Packs::count_one)
      .def_property_readonly("begun", &Packs::begun)
      .def("forward", &Packs::forward)
      .def("recompute", &Packs::recompute)
      .def("__len__", &Packs::count);
  m.def("checkpoint_unread", &unread_below);
}

}  // namespace gradext::guard
