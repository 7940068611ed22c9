// Divides the blocks of tensors among the threads of a grid. Host and device share it:
// gradext._C.testing.fingerprint_emulate walks the same lists on the CPU.
//
// A group of eight threads reads one block of bytes at a time; a team (a thread block) is some
// groups. Two lists:
// - of any number of tensors of any kind: their blocks are numbered through (an empty tensor counts
//   as one, without bytes, so that somebody finishes it), and each team takes as long a run of
//   them. Where one tensor holds all of a run, the groups take turns and add what they found once,
//   for additions to one place wait for each other; else each group has its part of the run.
// - of one plain tensor: the teams take turns, so that all of them read in one neighbourhood.
#pragma once

#include "fingerprint/layout.h"

namespace gradext::fingerprint {

constexpr int kGroup = 8;  // threads to a block of bytes; each has two lanes, 16 bytes of a row

// A table is a run of words: kEntryWords for each tensor, then the layouts they point to.
constexpr int64_t kEntryWords = 5;

struct Table {
  const int64_t* words;
  int64_t count;   // tensors
  int64_t blocks;  // of all of them
};

struct Entry {
  const uint8_t* data;
  int64_t bytes;
  int64_t first;  // number of its first block
  uint64_t facts;
  Form form;
};

// itemsize, piece, view, is_complex and the place of the layout in one word.
GRADEXT_HD int64_t pack_form(const Form& form, int64_t layout_at) {
  return form.itemsize | form.piece << 8 | form.view << 16 | (form.is_complex ? 1 << 24 : 0) |
         layout_at << 32;
}

GRADEXT_HD Entry entry_at(const Table& table, int64_t index) {
  const int64_t* words = table.words + index * kEntryWords;
  Entry entry;
  entry.data = reinterpret_cast<const uint8_t*>(words[0]);
  entry.bytes = words[1];
  entry.first = words[2];
  entry.facts = static_cast<uint64_t>(words[3]);
  const int64_t packed = words[4], layout_at = packed >> 32;
  entry.form.itemsize = static_cast<int>(packed & 0xFF);
  entry.form.piece = static_cast<int>(packed >> 8 & 0xFF);
  entry.form.view = static_cast<int>(packed >> 16 & 0xFF);
  entry.form.is_complex = (packed >> 24 & 1) != 0;
  entry.form.layout = layout_at ? table.words + layout_at : nullptr;
  return entry;
}

GRADEXT_HD int64_t first_block(const Table& table, int64_t index) {
  return index < table.count ? table.words[index * kEntryWords + 2] : table.blocks;
}

GRADEXT_HD int64_t blocks_of(int64_t bytes) {
  return bytes > 0 ? (bytes + kBlock - 1) / kBlock : 1;
}

// The tensor that holds block `block`.
GRADEXT_HD int64_t find_entry(const Table& table, int64_t block) {
  int64_t low = 0, high = table.count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (first_block(table, middle) <= block ? low : high) = middle;
  }
  return low;
}

// Where the part of `index` begins if `all` is dealt to `parts`; its end is the next one's begin.
GRADEXT_HD int64_t part_begin(int64_t index, int64_t parts, int64_t all) {
  const int64_t each = all / parts, more = all % parts;
  return index * each + (index < more ? index : more);
}

// A thread's two lanes of a block.
struct Lanes {
  uint64_t a, b;
};

GRADEXT_HD void fold_words(Lanes& lanes, uint64_t first, uint64_t second) {
  lanes.a = fold(lanes.a, first);
  lanes.b = fold(lanes.b, second);
}

#if defined(__CUDA_ARCH__)
// A full block at a multiple of 16. The rows to come are being loaded while those at hand are
// folded.
__device__ __forceinline__ void fold_full(Lanes& lanes, const uint8_t* block, int thread) {
  constexpr int kBatch = 8, kRows = kBlock / kRow;
  const auto* at = reinterpret_cast<const ulonglong2*>(block) + thread;
  ulonglong2 here[kBatch];
#pragma unroll
  for (int k = 0; k < kBatch; ++k) {
    here[k] = __ldg(at + k * kGroup);
  }
#pragma unroll 1
  for (int row = kBatch; row < kRows; row += kBatch) {
    ulonglong2 next[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      next[k] = __ldg(at + (row + k) * kGroup);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      fold_words(lanes, here[k].x, here[k].y);
      here[k] = next[k];
    }
  }
#pragma unroll
  for (int k = 0; k < kBatch; ++k) {
    fold_words(lanes, here[k].x, here[k].y);
  }
}
#endif

// A block of a plain tensor, which may be cut off at its end.
GRADEXT_HD void fold_plain(
    Lanes& lanes, const uint8_t* data, int64_t bytes, int64_t begin, int thread) {
#if defined(__CUDA_ARCH__)
  if (bytes - begin >= kBlock) {
    fold_full(lanes, data + begin, thread);
    return;
  }
#endif
  const int64_t end = bytes - begin < kBlock ? bytes : begin + kBlock;
#pragma unroll 1
  for (int64_t row = begin; row < end; row += kRow) {
    const int64_t at = row + 16 * thread;
    Words words;
    if (bytes - at >= 16) {
      load_pieces(words, 0, data + at, 16, 16);
    } else {
#pragma unroll 1
      for (int k = 0; k < bytes - at; ++k) {
        (k < 8 ? words.first : words.second) |= uint64_t{data[at + k]} << (8 * (k & 7));
      }
    }
    fold_words(lanes, words.first, words.second);
  }
}

// A block of any tensor; apart, so that its needs take no registers from the ones above.
GRADEXT_HD_SELDOM Lanes fold_any(Lanes lanes, const Entry& entry, int64_t begin, int thread) {
  const int64_t end = entry.bytes - begin < kBlock ? entry.bytes : begin + kBlock;
  for (int64_t row = begin; row < end; row += kRow) {
    const Words words = read16(entry.data, entry.bytes, entry.form, row + 16 * thread);
    fold_words(lanes, words.first, words.second);
  }
  return lanes;
}

GRADEXT_HD bool is_plain(const Form& form) {
  return form.layout == nullptr && form.view == kAsStored && form.piece == 16;
}

GRADEXT_HD Lanes lanes_of(int64_t block, int thread) {
  const uint64_t key = block_key(static_cast<uint64_t>(block));
  return {lane_key(2 * thread) ^ key, lane_key(2 * thread + 1) ^ key};
}

GRADEXT_HD void add_lanes(Sums& sums, const Lanes& lanes) {
  add_lane(sums, lanes.a);
  add_lane(sums, lanes.b);
}

// One thread's two lanes of one block, into `sums`. An empty tensor's block has none.
GRADEXT_HD void add_block(const Entry& entry, int64_t block, int thread, Sums& sums) {
  const int64_t begin = block * kBlock;
  if (begin >= entry.bytes) {
    return;
  }
  Lanes lanes = lanes_of(block, thread);
  if (is_plain(entry.form)) {
    fold_plain(lanes, entry.data, entry.bytes, begin, thread);
  } else {
    lanes = fold_any(lanes, entry, begin, thread);
  }
  add_lanes(sums, lanes);
}

// --- The list of tensors. ---

// A run of blocks, and the tensor that holds its first.
struct Run {
  int64_t begin, end;
  int64_t index;
  bool in_one;  // that tensor holds all of it
};

// The run of a team; every team has `each` blocks, the last one what is left.
GRADEXT_HD Run run_of(const Table& table, int64_t team, int64_t each) {
  Run run;
  run.begin = team * each;
  run.end = run.begin + each < table.blocks ? run.begin + each : table.blocks;
  run.index = run.begin < run.end ? find_entry(table, run.begin) : 0;
  run.in_one = run.begin < run.end && first_block(table, run.index + 1) >= run.end;
  return run;
}

// What a thread of group `group` of `size` finds in a run that is in one tensor.
GRADEXT_HD Sums
add_turns(const Entry& entry, const Run& run, int64_t group, int64_t size, int thread) {
  Sums sums;
  for (int64_t block = run.begin + group; block < run.end; block += size) {
    add_block(entry, block - entry.first, thread, sums);
  }
  return sums;
}

// The part that group `group` of `size` has of a run, as one of its threads walks it.
// `flush(index, entry, sums, blocks)` takes the thread's part of `blocks` blocks of a tensor; all
// threads of a group call it in step.
template <typename Flush>
GRADEXT_HD void walk(
    const Table& table,
    const Run& run,
    int64_t group,
    int64_t size,
    int thread,
    const Flush& flush) {
  int64_t block = run.begin + part_begin(group, size, run.end - run.begin);
  const int64_t end = run.begin + part_begin(group + 1, size, run.end - run.begin);
  if (block >= end) {
    return;
  }
  for (int64_t index = find_entry(table, block); block < end; ++index) {
    const Entry entry = entry_at(table, index);
    const int64_t next = first_block(table, index + 1), until = next < end ? next : end;
    Sums sums;
    const int64_t begin = block;
    for (; block < until; ++block) {
      add_block(entry, block - entry.first, thread, sums);
    }
    flush(index, entry, sums, until - begin);
  }
}

// --- The list of one plain tensor. ---

struct Plain {
  const uint8_t* data;  // at a multiple of 16
  int64_t bytes;
  uint64_t facts;
};

// In a turn each of `teams` teams reads `each` blocks, one by each of its first groups; after all
// `full` turns there are `rest` blocks left for one more.
struct Turns {
  int64_t teams, each, full, rest;
};

GRADEXT_HD Sums
add_turns(const Plain& plain, const Turns& turns, int64_t team, int64_t group, int thread) {
  Sums sums;
  if (group < turns.each) {
    for (int64_t block = team * turns.each + group; block * kBlock < plain.bytes;
         block += turns.teams * turns.each) {
      Lanes lanes = lanes_of(block, thread);
      fold_plain(lanes, plain.data, plain.bytes, block * kBlock, thread);
      add_lanes(sums, lanes);
    }
  }
  return sums;
}

// How many blocks a team reads in all its turns.
GRADEXT_HD int64_t blocks_in(const Turns& turns, int64_t team) {
  const int64_t left = turns.rest - team * turns.each;
  return turns.full * turns.each + (left < 0 ? 0 : left < turns.each ? left : turns.each);
}

// Turns of equal length for about `teams` teams of `size` groups; few blocks go to many teams.
inline Turns turns_for(int64_t blocks, int64_t teams, int64_t size) {
  constexpr int64_t kLeast = 4;
  const int64_t turns = (blocks + teams * size - 1) / (teams * size);
  int64_t each = (blocks + teams * turns - 1) / (teams * turns);
  each = each < kLeast ? kLeast : each;
  each = each < size ? each : size;
  const int64_t wanted = (blocks + each - 1) / each;
  teams = wanted < teams ? wanted : teams;
  return {teams, each, blocks / (teams * each), blocks % (teams * each)};
}

}  // namespace gradext::fingerprint
