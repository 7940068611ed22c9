// The CPU: one pass over the blocks of all tensors, cut evenly among torch's threads. A tensor that
// is read by one thread is finished there; the parts of the few that are cut in two are added up
// after the pass.
#include "fingerprint/fingerprint_cpu.h"

#include "fingerprint/blocks.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <mutex>

namespace gradext::fingerprint {
namespace {

// Blocks for which waking another thread pays: 256 KiB, several microseconds of reading.
constexpr int64_t kGrain = 64;

template <typename T>
void copy_strided(const uint8_t* from, int64_t stride, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * static_cast<int64_t>(sizeof(T)), from + i * stride, sizeof(T));
  }
}

struct Sixteen {
  uint8_t bytes[16];
};

void copy_run(const uint8_t* from, int64_t stride, int64_t itemsize, int64_t count, uint8_t* to) {
  if (stride == itemsize) {
    std::memcpy(to, from, static_cast<size_t>(count * itemsize));
    return;
  }
  switch (itemsize) {
    case 1:
      return copy_strided<uint8_t>(from, stride, count, to);
    case 2:
      return copy_strided<uint16_t>(from, stride, count, to);
    case 4:
      return copy_strided<uint32_t>(from, stride, count, to);
    case 8:
      return copy_strided<uint64_t>(from, stride, count, to);
    default:
      return copy_strided<Sixteen>(from, stride, count, to);
  }
}

// `count` elements from number `first` on, in logical order.
void gather(
    const uint8_t* data,
    const int64_t* layout,
    int64_t itemsize,
    int64_t first,
    int64_t count,
    uint8_t* to) {
  const int64_t dims = layout[0];
  const int64_t *sizes = layout + 1, *strides = layout + 1 + dims;
  int64_t at[64];
  int64_t rest = first;
  for (int64_t d = dims - 1; d >= 0; --d) {
    at[d] = rest % sizes[d];
    rest /= sizes[d];
  }
  int64_t offset = byte_offset(layout, first);
  while (true) {
    const int64_t last = dims - 1, run = std::min(sizes[last] - at[last], count);
    copy_run(data + offset, strides[last], itemsize, run, to);
    count -= run;
    if (count == 0) {
      return;
    }
    to += run * itemsize;
    offset -= at[last] * strides[last];
    at[last] = 0;
    for (int64_t d = last - 1; d >= 0; --d) {
      offset += strides[d];
      if (++at[d] < sizes[d]) {
        break;
      }
      offset -= sizes[d] * strides[d];
      at[d] = 0;
    }
  }
}

template <typename T>
void change_numbers(uint8_t* data, int64_t numbers, const Source& source) {
  for (int64_t i = 0; i < numbers; ++i, data += sizeof(T)) {
    T bits;
    std::memcpy(&bits, data, sizeof(T));
    if (source.view & kNegate) {
      bits = static_cast<T>(0 - bits);
    } else if (source.view & (source.is_complex && i % 2 ? kFlipSecond : kFlipFirst)) {
      bits ^= static_cast<T>(T{1} << (8 * sizeof(T) - 1));
    }
    std::memcpy(data, &bits, sizeof(T));
  }
}

void change(uint8_t* data, int64_t bytes, const Source& source) {
  const int64_t size = source.is_complex ? source.itemsize / 2 : source.itemsize;
  switch (size) {
    case 1:
      return change_numbers<uint8_t>(data, bytes, source);
    case 2:
      return change_numbers<uint16_t>(data, bytes / 2, source);
    case 4:
      return change_numbers<uint32_t>(data, bytes / 4, source);
    default:
      return change_numbers<uint64_t>(data, bytes / 8, source);
  }
}

// Small tensors lie anywhere: where one begins is asked for a few before it. The rest of it is
// asked for while the one before it is read. Returns its bytes.
int64_t ask_for(const Source& source) {
  base::prefetch(source.data, static_cast<int>((std::min(source.bytes, kBlock / 8) + 63) / 64));
  return source.bytes;
}

void add_blocks(
    const Sources& sources,
    const Source& source,
    int64_t block,
    int64_t end,
    const Ahead& next,
    Sums& sums) {
  const Blocks run = blocks();
  const int64_t until = std::min(end * kBlock, source.bytes);
  const int64_t* layout = sources.layout(source);
  if (layout == nullptr && source.view == kAsStored) {
    const int64_t begin = block * kBlock;
    run(source.data + begin, until - begin, block, next, sums);
    return;
  }
  alignas(64) uint8_t stage[kBlock];
  for (; block < end; ++block) {
    const int64_t begin = block * kBlock, bytes = std::min(kBlock, until - begin);
    if (layout != nullptr) {
      const int64_t size = source.itemsize;
      gather(source.data, layout, size, begin / size, bytes / size, stage);
    } else {
      std::memcpy(stage, source.data + begin, static_cast<size_t>(bytes));
    }
    if (source.view != kAsStored) {
      change(stage, bytes, source);
    }
    run(stage, bytes, block, {}, sums);
  }
}

}  // namespace

void of_sources(const Sources& sources, Value* out) {
  const auto count = static_cast<int64_t>(sources.list.size());
  std::vector<int64_t> first(count + 1);
  for (int64_t i = 0; i < count; ++i) {
    first[i + 1] = first[i] + blocks_of(sources.list[i].bytes);
  }
  struct Part {
    int64_t tensor;
    Sums sums;
  };
  std::vector<Part> parts;
  std::mutex mutex;
  const auto pass = [&](int64_t begin, int64_t end) {
    int64_t tensor =
        begin == 0 ? 0 : std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    int64_t asked = tensor, waiting = 0;  // the next tensor to ask for, the bytes asked before it
    for (int64_t block = begin; block < end; ++tensor) {
      const Source& source = sources.list[tensor];
      const int64_t until = std::min(first[tensor + 1], end);
      for (; asked < count && waiting < source.bytes + kBlock; ++asked) {
        waiting += ask_for(sources.list[asked]);
      }
      waiting -= source.bytes;
      Ahead next;
      if (tensor + 1 < count) {
        const Source& after = sources.list[tensor + 1];
        next = {after.data, static_cast<size_t>(after.bytes)};
      }
      Sums sums;
      if (source.bytes > 0) {
        add_blocks(sources, source, block - first[tensor], until - first[tensor], next, sums);
      }
      if (block == first[tensor] && until == first[tensor + 1]) {
        out[tensor] = finish(sums, source.facts);
      } else {
        const std::lock_guard<std::mutex> lock(mutex);
        parts.push_back({tensor, sums});
      }
      block = until;
    }
  };
  const int64_t total = first[count];
  if (total <= kGrain) {
    pass(0, total);  // not even a question to the thread pool
  } else {
    at::parallel_for(0, total, kGrain, pass);
  }
  std::sort(
      parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.tensor < b.tensor; });
  for (size_t i = 0; i < parts.size();) {
    const int64_t tensor = parts[i].tensor;
    Sums sums;
    for (; i < parts.size() && parts[i].tensor == tensor; ++i) {
      sums.low += parts[i].sums.low;
      sums.high += parts[i].sums.high;
    }
    out[tensor] = finish(sums, sources.list[tensor].facts);
  }
}

bool can_fingerprint(const at::Tensor& tensor) {
  const auto* impl = tensor.defined() ? tensor.unsafeGetTensorImpl() : nullptr;
  return refusal(impl) == nullptr && device_of(*impl).is_cpu();
}

Value of_cpu(const at::Tensor& tensor) {
  Value value;
  of_cpu_list(c10::ArrayRef<at::Tensor>(tensor), &value);
  return value;
}

void of_cpu_list(c10::ArrayRef<at::Tensor> tensors, Value* out) {
  Sources sources;
  sources.list.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    add_source(*tensor.unsafeGetTensorImpl(), sources);
  }
  of_sources(sources, out);
}

}  // namespace gradext::fingerprint
