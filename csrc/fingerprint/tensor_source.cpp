#include "fingerprint/tensor_source.h"

#include <c10/core/ScalarType.h>

#include <limits>

namespace gradext::fingerprint {
namespace {

// A tensor subclass is asked for what it records itself: its own sizes() could run Python.
bool is_python(const c10::TensorImpl& impl) {
  return impl.key_set().has(c10::DispatchKey::Python);
}

c10::IntArrayRef strides_of(const c10::TensorImpl& impl) {
  return is_python(impl) ? c10::asIntArrayRefUnchecked(impl.sym_strides_default()) : impl.strides();
}

int64_t numel_of(const c10::TensorImpl& impl) {
  return is_python(impl) ? impl.numel_default() : impl.numel();
}

// Elements to a byte, for the two quantized dtypes that pack several; else 1.
int64_t packed(c10::ScalarType type) {
  return type == c10::ScalarType::QUInt4x2 ? 2 : type == c10::ScalarType::QUInt2x4 ? 4 : 1;
}

int64_t bytes_of(const c10::TensorImpl& impl) {
  const int64_t per_byte = packed(c10::typeMetaToScalarType(impl.dtype()));
  return (numel_of(impl) * static_cast<int64_t>(impl.itemsize()) + per_byte - 1) / per_byte;
}

// From the first byte of the storage to past the last one that the tensor shows.
int64_t extent_of(const c10::TensorImpl& impl) {
  const auto itemsize = static_cast<int64_t>(impl.itemsize());
  const int64_t offset = impl.storage_offset_default() * itemsize;
  if (packed(c10::typeMetaToScalarType(impl.dtype())) > 1) {
    return offset + bytes_of(impl);
  }
  int64_t last = 0;
  const c10::IntArrayRef sizes = sizes_of(impl), strides = strides_of(impl);
  for (size_t d = 0; d < sizes.size(); ++d) {
    last += (sizes[d] - 1) * strides[d];
  }
  return offset + (last + 1) * itemsize;
}

// The dimensions merged where one continues the next, those of size 1 left out, strides in bytes.
// Returns false, and writes nothing, when that leaves a contiguous tensor.
bool add_layout(const c10::TensorImpl& impl, std::vector<int64_t>& out) {
  const auto itemsize = static_cast<int64_t>(impl.itemsize());
  const c10::IntArrayRef all_sizes = sizes_of(impl), all_strides = strides_of(impl);
  int64_t sizes[64], strides[64], dims = 0;  // each kept size is at least 2, so 63 is the most
  for (size_t d = 0; d < all_sizes.size(); ++d) {
    const int64_t size = all_sizes[d], stride = all_strides[d] * itemsize;
    if (size == 1) {
      continue;
    }
    if (dims > 0 && strides[dims - 1] == stride * size) {
      sizes[dims - 1] *= size;
      strides[dims - 1] = stride;
    } else {
      sizes[dims] = size;
      strides[dims++] = stride;
    }
  }
  if (dims == 0 || (dims == 1 && strides[0] == itemsize)) {
    return false;
  }
  out.push_back(dims);
  out.insert(out.end(), sizes, sizes + dims);
  out.insert(out.end(), strides, strides + dims);
  return true;
}

uint8_t view_of(const c10::TensorImpl& impl, c10::ScalarType type) {
  const bool conjugate = impl.key_set().has(c10::DispatchKey::Conjugate);
  const bool negative = impl.key_set().has(c10::DispatchKey::Negative);
  if (c10::isComplexType(type)) {
    return (negative ? kFlipFirst : 0) | (conjugate != negative ? kFlipSecond : 0);
  }
  if (!negative) {
    return kAsStored;
  }
  return c10::isFloatingType(type) ? kFlipFirst : kNegate;
}

// The largest power of two, at most 16, that divides every address at which something is loaded.
int piece_of(const Source& source, const int64_t* layout) {
  int64_t bits = 16 | static_cast<int64_t>(reinterpret_cast<intptr_t>(source.data));
  if (layout != nullptr) {
    bits |= source.itemsize;
    for (int64_t d = 0; d < layout[0]; ++d) {
      bits |= layout[1 + layout[0] + d];
    }
  }
  return static_cast<int>(bits & -bits);
}

}  // namespace

const char* refusal(const c10::TensorImpl* impl) {
  if (impl == nullptr || !impl->dtype_initialized()) {
    return "an undefined tensor has no content";
  }
  const c10::DispatchKeySet keys = impl->key_set();
  if (keys.has_any(c10::sparse_ks)) {
    return "a sparse tensor has no bytes in logical order; take its _indices() and _values()";
  }
  if (keys.has_any(c10::sparse_csr_ks)) {
    return "a compressed sparse tensor has no bytes in logical order; take its indices and "
           "values()";
  }
  if (keys.has_any(c10::mkldnn_ks)) {
    return "an mkldnn tensor keeps its elements in a layout of its own; take its to_dense()";
  }
  if (impl->has_symbolic_sizes_strides()) {
    return "a tensor with symbolic sizes has no data";
  }
  if (keys.has(c10::DispatchKey::NestedTensor) && !is_python(*impl)) {
    return "a nested tensor has no single shape; take its values() or its unbind()";
  }
  if (!impl->has_storage() || impl->unsafe_storage().unsafeGetStorageImpl() == nullptr) {
    return "it has no storage of its own (a functorch wrapper, or another kind of tensor)";
  }
  const c10::Storage& storage = impl->unsafe_storage();
  if (storage.device_type() == c10::DeviceType::Meta) {
    return "a meta or fake tensor has no data";
  }
  if (numel_of(*impl) == 0) {
    return nullptr;
  }
  if (storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get() == nullptr) {
    return is_python(*impl) ? "a wrapper subclass has no data of its own; take the tensors it holds"
                            : "it has no data, or its storage was freed";
  }
  if (static_cast<int64_t>(storage.nbytes()) < extent_of(*impl)) {
    return "its storage was freed or is too small for its shape";
  }
  return nullptr;
}

c10::Device device_of(const c10::TensorImpl& impl) {
  return impl.unsafe_storage().device();
}

c10::ScalarType dtype_of(const c10::TensorImpl& impl) {
  return c10::toUnderlying(c10::typeMetaToScalarType(impl.dtype()));
}

c10::IntArrayRef sizes_of(const c10::TensorImpl& impl) {
  return is_python(impl) ? c10::asIntArrayRefUnchecked(impl.sym_sizes_default()) : impl.sizes();
}

void add_source(const c10::TensorImpl& impl, Sources& sources) {
  const c10::ScalarType stored = c10::typeMetaToScalarType(impl.dtype());
  Source source;
  source.bytes = bytes_of(impl);
  source.itemsize = static_cast<uint8_t>(impl.itemsize());
  source.is_complex = c10::isComplexType(stored);
  source.view = view_of(impl, stored);
  source.layout_at = -1;
  source.data = nullptr;
  const c10::IntArrayRef sizes = sizes_of(impl);
  if (source.bytes > 0) {
    // Not data(): that would copy a copy-on-write storage, and this is a read.
    source.data =
        static_cast<const uint8_t*>(
            impl.unsafe_storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get()) +
        impl.storage_offset_default() * source.itemsize;
    const auto place = static_cast<int64_t>(sources.layouts.size());
    if ((is_python(impl) || !impl.is_contiguous()) && packed(stored) == 1 &&
        add_layout(impl, sources.layouts)) {
      source.layout_at = place;
    }
  }
  uint64_t facts = add_fact(kFactsStart, static_cast<uint64_t>(dtype_of(impl)));
  facts = add_fact(facts, sizes.size());
  for (const int64_t size : sizes) {
    facts = add_fact(facts, static_cast<uint64_t>(size));
  }
  source.facts = add_fact(facts, static_cast<uint64_t>(source.bytes));
  sources.list.push_back(source);
}

std::vector<Chunk> pack(const Sources& sources, int64_t limit) {
  const auto count = static_cast<int64_t>(sources.list.size());
  const auto layout_words = [&](const Source& source) {
    const int64_t* layout = sources.layout(source);
    return layout ? 1 + 2 * layout[0] : 0;
  };
  std::vector<Chunk> chunks;
  for (int64_t begin = 0; begin < count;) {
    int64_t end = begin, words = 0;
    while (end < count) {
      const int64_t more = kEntryWords + layout_words(sources.list[end]);
      if (end > begin && words + more > limit) {
        break;
      }
      words += more;
      ++end;
    }
    Chunk chunk{{}, begin, end, 0};
    chunk.words.reserve(words);
    chunk.words.resize((end - begin) * kEntryWords);
    for (int64_t i = begin; i < end; ++i) {
      const Source& source = sources.list[i];
      const int64_t* layout = sources.layout(source);
      int64_t place = 0;
      if (layout != nullptr) {
        place = static_cast<int64_t>(chunk.words.size());
        chunk.words.insert(chunk.words.end(), layout, layout + layout_words(source));
      }
      const Form form{
          source.itemsize, piece_of(source, layout), source.view, source.is_complex, nullptr};
      int64_t* entry = chunk.words.data() + (i - begin) * kEntryWords;
      entry[0] = static_cast<int64_t>(reinterpret_cast<intptr_t>(source.data));
      entry[1] = source.bytes;
      entry[2] = chunk.blocks;
      entry[3] = static_cast<int64_t>(source.facts);
      entry[4] = pack_form(form, place);
      chunk.blocks += blocks_of(source.bytes);
    }
    chunks.push_back(std::move(chunk));
    begin = end;
  }
  return chunks;
}

}  // namespace gradext::fingerprint
