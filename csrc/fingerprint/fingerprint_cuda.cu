// The kernels: one launch for any number of tensors of any size, and a quicker one for one plain
// tensor. They walk the lists of worklist.h; what they find is added to three words of scratch a
// tensor (low, high, blocks done), and who adds a tensor's last block finishes it and leaves zeros
// there.
#define GRADEXT_NO_ATEN
#include "fingerprint/fingerprint.h"
#include "fingerprint/worklist.h"

#include <algorithm>
#include <cstring>

namespace gradext::fingerprint {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int64_t kTeam = kThreads / kGroup;  // groups

// Scratch of the calls with few tensors, some for each stream: zeros before a call and after it.
__device__ uint64_t resident_scratch[kResidentPlaces][3 * kResidentTensors];

struct Arguments {
  int64_t words[kArgumentWords];
};

__device__ void add(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

// One tensor's size, facts, scratch and result.
struct Target {
  int64_t bytes;
  uint64_t facts;
  uint64_t* slot;
  int64_t* out;
};

__device__ Target target(const Entry& entry, int64_t index, uint64_t* scratch, int64_t* out) {
  return {entry.bytes, entry.facts, scratch + 3 * index, out + 2 * index};
}

// `blocks` blocks of a tensor, by one thread.
__device__ void settle(const Target& target, Sums sums, int64_t blocks) {
  const int64_t all = blocks_of(target.bytes);
  if (blocks != all) {
    uint64_t* slot = target.slot;
    add(slot, sums.low);
    add(slot + 1, sums.high);
    __threadfence();  // the sums are seen before the count
    const auto before = atomicAdd(
        reinterpret_cast<unsigned long long*>(slot + 2), static_cast<unsigned long long>(blocks));
    if (static_cast<int64_t>(before) + blocks != all) {
      return;
    }
    __threadfence();
    volatile uint64_t* found = slot;
    sums.low = found[0];
    sums.high = found[1];
    found[0] = 0;
    found[1] = 0;
    found[2] = 0;
  }
  const Value value = finish(sums, target.facts);
  target.out[0] = static_cast<int64_t>(value.low);
  target.out[1] = static_cast<int64_t>(value.high);
}

// The sums of `width` neighbouring threads, a power of two; all of them are here together.
__device__ Sums together(Sums sums, int width, unsigned mask) {
  for (int other = width / 2; other > 0; other /= 2) {
    sums.low += __shfl_xor_sync(mask, static_cast<unsigned long long>(sums.low), other);
    sums.high += __shfl_xor_sync(mask, static_cast<unsigned long long>(sums.high), other);
  }
  return sums;
}

// What all threads of the thread block have found, of one tensor; called by all of them.
__device__ void settle_together(const Target& target, Sums sums, int64_t blocks) {
  __shared__ uint64_t low[kWarps], high[kWarps];
  sums = together(sums, 32, 0xFFFFFFFFu);
  if (threadIdx.x % 32 == 0) {
    low[threadIdx.x / 32] = sums.low;
    high[threadIdx.x / 32] = sums.high;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    Sums all;
    for (int warp = 0; warp < kWarps; ++warp) {
      all.low += low[warp];
      all.high += high[warp];
    }
    settle(target, all, blocks);
  }
}

__device__ void walk_table(const Table& table, int64_t each, uint64_t* scratch, int64_t* out) {
  const int group = threadIdx.x / kGroup, thread = threadIdx.x % kGroup;
  const Run run = run_of(table, blockIdx.x, each);
  if (run.in_one) {
    const Entry entry = entry_at(table, run.index);
    const Sums sums = add_turns(entry, run, group, kTeam, thread);
    settle_together(target(entry, run.index, scratch, out), sums, run.end - run.begin);
    return;
  }
  // The threads of a group are together, the groups of a warp need not be.
  const unsigned mask = 0xFFu << (threadIdx.x % 32 / kGroup * kGroup);
  walk(
      table,
      run,
      group,
      kTeam,
      thread,
      [=](int64_t index, const Entry& entry, const Sums& sums, int64_t blocks) {
        const Sums all = together(sums, kGroup, mask);
        if (thread == 0) {
          settle(target(entry, index, scratch, out), all, blocks);
        }
      });
}

__global__ void __launch_bounds__(kThreads, 2) fingerprint_plain_kernel(
    Plain plain, Turns turns, uint64_t* scratch, int resident, int64_t* out) {
  const int group = threadIdx.x / kGroup, thread = threadIdx.x % kGroup;
  const Sums sums = add_turns(plain, turns, blockIdx.x, group, thread);
  uint64_t* slot = scratch != nullptr ? scratch : resident_scratch[resident];
  settle_together({plain.bytes, plain.facts, slot, out}, sums, blocks_in(turns, blockIdx.x));
}

__global__ void __launch_bounds__(kThreads, 2) fingerprint_arguments_kernel(
    const __grid_constant__ Arguments arguments,
    int64_t count,
    int64_t blocks,
    int64_t each,
    uint64_t* scratch,
    int resident,
    int64_t* out) {
  walk_table(
      {arguments.words, count, blocks},
      each,
      scratch != nullptr ? scratch : resident_scratch[resident],
      out);
}

__global__ void __launch_bounds__(kThreads, 2) fingerprint_table_kernel(
    const int64_t* words,
    int64_t count,
    int64_t blocks,
    int64_t each,
    uint64_t* scratch,
    int64_t* out) {
  walk_table({words, count, blocks}, each, scratch, out);
}

// As many thread blocks as the current device holds at once.
template <typename Kernel>
cudaError_t teams_of(Kernel kernel, int64_t& teams) {
  int device = 0, processors = 0, resident = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (status == cudaSuccess) {
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0);
  }
  teams = std::max<int64_t>(1, static_cast<int64_t>(processors) * resident);
  return status;
}

// A run is two turns of a team at most: whoever is done early takes another run.
template <typename Kernel>
cudaError_t runs_for(Kernel kernel, int64_t blocks, unsigned& grid, int64_t& each) {
  int64_t teams = 0;
  const cudaError_t status = teams_of(kernel, teams);
  each = turns_for(blocks, teams, 2 * kTeam).each;
  grid = static_cast<unsigned>((blocks + each - 1) / each);
  return status;
}

}  // namespace

cudaError_t launch_plain(
    const Plain& plain, uint64_t* scratch, int resident, int64_t* out, cudaStream_t stream) {
  int64_t teams = 0;
  const cudaError_t status = teams_of(fingerprint_plain_kernel, teams);
  if (status != cudaSuccess) {
    return status;
  }
  const Turns turns = turns_for(blocks_of(plain.bytes), teams, kTeam);
  fingerprint_plain_kernel<<<static_cast<unsigned>(turns.teams), kThreads, 0, stream>>>(
      plain, turns, scratch, resident, out);
  return cudaGetLastError();
}

cudaError_t launch_arguments(
    const int64_t* words,
    int64_t size,
    int64_t count,
    int64_t blocks,
    uint64_t* scratch,
    int resident,
    int64_t* out,
    cudaStream_t stream) {
  if (count == 0) {
    return cudaSuccess;
  }
  Arguments arguments;
  std::memcpy(arguments.words, words, sizeof(int64_t) * size);
  unsigned grid = 0;
  int64_t each = 0;
  const cudaError_t status = runs_for(fingerprint_arguments_kernel, blocks, grid, each);
  if (status != cudaSuccess) {
    return status;
  }
  fingerprint_arguments_kernel<<<grid, kThreads, 0, stream>>>(
      arguments, count, blocks, each, scratch, resident, out);
  return cudaGetLastError();
}

cudaError_t launch_table(
    const int64_t* words,
    int64_t count,
    int64_t blocks,
    uint64_t* scratch,
    int64_t* out,
    cudaStream_t stream) {
  unsigned grid = 0;
  int64_t each = 0;
  const cudaError_t status = runs_for(fingerprint_table_kernel, blocks, grid, each);
  if (status != cudaSuccess) {
    return status;
  }
  fingerprint_table_kernel<<<grid, kThreads, 0, stream>>>(words, count, blocks, each, scratch, out);
  return cudaGetLastError();
}

}  // namespace gradext::fingerprint
