// Finds the address of an element from its place in logical order: strides, sign bits of negative
// and conjugate views, alignment. Host and device share it, so the CPU's tests run the arithmetic
// of the kernel.
#pragma once

#include "fingerprint/mix.h"

#include <cstring>

namespace gradext::fingerprint {

// A layout is a run of words: the number of dimensions, their sizes, their strides in BYTES; the
// dimensions as few as they can be (see add_layout in tensor_source.cpp). No layout: contiguous.
GRADEXT_HD int64_t byte_offset(const int64_t* layout, int64_t element) {
  const int64_t dims = layout[0];
  int64_t offset = 0;
  for (int64_t d = dims - 1; d > 0; --d) {
    const int64_t size = layout[1 + d];
    const int64_t before = element / size;
    offset += (element - before * size) * layout[1 + dims + d];
    element = before;
  }
  return dims > 0 ? offset + element * layout[1 + dims] : offset;
}

// What a view changes in the elements it shows.
enum View : uint8_t {
  kAsStored = 0,
  kFlipFirst = 1,   // the sign bit of a real number, or of a complex number's real part
  kFlipSecond = 2,  // the sign bit of the imaginary part
  kNegate = 4,      // the integer -x
};

// How one tensor is read.
struct Form {
  int itemsize;           // bytes: 1, 2, 4, 8 or 16
  int piece;              // bytes that can be loaded at once from any element, at most 16
  int view;               // View
  bool is_complex;        // with kFlipFirst or kFlipSecond: an element is two numbers
  const int64_t* layout;  // null: contiguous
};

struct Words {
  uint64_t first = 0, second = 0;  // 16 bytes, little-endian
};

// `count` bytes (a multiple of `piece`, at most 16 together with `at`) into place `at` of `words`.
GRADEXT_HD void load_pieces(Words& words, int at, const uint8_t* data, int count, int piece) {
  for (int i = 0; i < count; i += piece) {
    uint64_t bits = 0, upper = 0;
#if defined(__CUDA_ARCH__)
    switch (piece) {
      case 16: {
        const ulonglong2 both = *reinterpret_cast<const ulonglong2*>(data + i);
        bits = both.x;
        upper = both.y;
        break;
      }
      case 8:
        bits = *reinterpret_cast<const uint64_t*>(data + i);
        break;
      case 4:
        bits = *reinterpret_cast<const uint32_t*>(data + i);
        break;
      case 2:
        bits = *reinterpret_cast<const uint16_t*>(data + i);
        break;
      default:
        bits = data[i];
    }
#else
    for (int k = 0; k < piece; ++k) {
      (k < 8 ? bits : upper) |= static_cast<uint64_t>(data[i + k]) << (8 * (k & 7));
    }
#endif
    const int place = at + i;
    if (place < 8) {
      words.first |= bits << (8 * place);
      words.second |= upper;
    } else {
      words.second |= bits << (8 * (place - 8));
    }
  }
}

// The same number with its sign as the view shows it; `bits` holds one number of `size` bytes.
GRADEXT_HD uint64_t flip_sign(uint64_t bits, int size) {
  return bits ^ (uint64_t{1} << (8 * size - 1));
}

GRADEXT_HD uint64_t negate(uint64_t bits, int size) {
  const uint64_t mask = size == 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * size)) - 1;
  return (0 - bits) & mask;
}

// One element as the view shows it.
GRADEXT_HD Words view_of(Words element, const Form& form) {
  if (form.view & kNegate) {
    element.first = negate(element.first, form.itemsize);
  } else if (!form.is_complex) {
    element.first =
        (form.view & kFlipFirst) ? flip_sign(element.first, form.itemsize) : element.first;
  } else {
    const int part = form.itemsize / 2;
    if (form.view & kFlipFirst) {
      element.first = flip_sign(element.first, part);
    }
    if (form.view & kFlipSecond) {
      (part == 8 ? element.second : element.first) ^= uint64_t{1}
                                                      << (part == 8 ? 63 : 16 * part - 1);
    }
  }
  return element;
}

// 16 bytes at `offset` (a multiple of 16) of the `bytes` that the tensor has in logical order;
// zeros beyond them.
GRADEXT_HD Words read16(const uint8_t* data, int64_t bytes, const Form& form, int64_t offset) {
  Words words;
  const int64_t left = bytes - offset;
  if (left <= 0) {
    return words;
  }
  const int here = left < 16 ? static_cast<int>(left) : 16;
  if (form.layout == nullptr && form.view == kAsStored && here == 16) {
    load_pieces(words, 0, data + offset, 16, form.piece);
    return words;
  }
  const int64_t first = offset / form.itemsize;
  const int piece = form.piece < form.itemsize ? form.piece : form.itemsize;
  for (int k = 0; k * form.itemsize < here; ++k) {
    const int64_t at =
        form.layout ? byte_offset(form.layout, first + k) : (first + k) * form.itemsize;
    Words element;
    load_pieces(element, 0, data + at, form.itemsize, piece);
    if (form.view != kAsStored) {
      element = view_of(element, form);
    }
    const int place = k * form.itemsize;
    if (place < 8) {
      words.first |= element.first << (8 * place);
      words.second |= element.second;
    } else {
      words.second |= element.first << (8 * (place - 8));
    }
  }
  return words;
}

}  // namespace gradext::fingerprint
