// Which group of threads of a grid computes which blocks of which tensor, for any number of tensors
// and any grid. Host and device share it: gradext._C.fingerprint_emulate walks the same list on the
// CPU.
//
// The blocks of all tensors are numbered through (an empty tensor counts as one, without bytes, so
// that somebody finishes it), each group takes an equal run of them, and what a group finds for a
// tensor is added to that tensor's sums. A team (a thread block) is a number of neighbouring
// groups: where one tensor holds all that they have to do, they take turns and add what they found
// once, for additions to one place wait for each other.
#pragma once

#include "layout.h"

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

// Where the run of `group` begins; its end is the next group's begin.
GRADEXT_HD int64_t run_begin(int64_t group, int64_t groups, int64_t blocks) {
  const int64_t each = blocks / groups, more = blocks % groups;
  return group * each + (group < more ? group : more);
}

// One thread's two lanes of one block, into `sums`.
GRADEXT_HD void add_block(const Entry& entry, int64_t block, int thread, Sums& sums) {
  const int64_t begin = block * kBlock, left = entry.bytes - begin;
  const int64_t end = left < kBlock ? entry.bytes : begin + kBlock;
  if (left <= 0) {
    return;
  }
  const uint64_t key = block_key(static_cast<uint64_t>(block));
  uint64_t a = lane_key(2 * thread) ^ key, b = lane_key(2 * thread + 1) ^ key;
#if defined(__CUDA_ARCH__)
  if (entry.form.layout == nullptr && entry.form.view == kAsStored && entry.form.piece == 16 &&
      left >= kBlock) {
    // The loads of a step do not wait for each other.
    const ulonglong2* at = reinterpret_cast<const ulonglong2*>(entry.data + begin) + thread;
#pragma unroll 8
    for (int row = 0; row < kBlock / kRow; ++row) {
      const ulonglong2 words = __ldg(at + row * kGroup);
      a = fold(a, words.x);
      b = fold(b, words.y);
    }
    add_lane(sums, a);
    add_lane(sums, b);
    return;
  }
#endif
  for (int64_t row = begin; row < end; row += kRow) {
    const Words words = read16(entry.data, entry.bytes, entry.form, row + 16 * thread);
    a = fold(a, words.first);
    b = fold(b, words.second);
  }
  add_lane(sums, a);
  add_lane(sums, b);
}

// The run of a team: that of its `size` groups together.
struct TeamRun {
  int64_t begin, end;
  int64_t index;  // of the tensor that holds its first block
  bool in_one;    // that tensor holds all of it
};

GRADEXT_HD TeamRun team_run(const Table& table, int64_t team, int64_t teams, int64_t size) {
  TeamRun run;
  run.begin = run_begin(team * size, teams * size, table.blocks);
  run.end = run_begin((team + 1) * size, teams * size, table.blocks);
  run.index = run.begin < run.end ? find_entry(table, run.begin) : 0;
  run.in_one = run.begin < run.end && first_block(table, run.index + 1) >= run.end;
  return run;
}

// What a thread of the team's group `group` finds in a run that is in one tensor.
GRADEXT_HD Sums
add_turns(const Entry& entry, const TeamRun& run, int64_t group, int64_t size, int thread) {
  Sums sums;
  for (int64_t block = run.begin + group; block < run.end; block += size) {
    add_block(entry, block - entry.first, thread, sums);
  }
  return sums;
}

// The run of one group, as one of its threads walks it. `flush(index, entry, sums, blocks)` takes
// the thread's part of `blocks` blocks of a tensor; all threads of a group call it in step.
template <typename Flush>
GRADEXT_HD void walk(
    const Table& table, int64_t group, int64_t groups, int thread, const Flush& flush) {
  int64_t block = run_begin(group, groups, table.blocks);
  const int64_t end = run_begin(group + 1, groups, table.blocks);
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

}  // namespace gradext::fingerprint
