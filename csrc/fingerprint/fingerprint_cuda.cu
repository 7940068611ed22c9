// The kernel: one launch for any number of tensors of any size. Groups of eight threads walk the
// work list of worklist.h; what they find is added to three words of scratch a tensor (low, high,
// blocks done), and who adds a tensor's last block finishes it and leaves zeros there.
#define GRADEXT_NO_ATEN
#include "fingerprint.h"
#include "worklist.h"

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

// `blocks` blocks of a tensor, by one thread.
__device__ void settle(
    int64_t index, const Entry& entry, Sums sums, int64_t blocks, uint64_t* scratch, int64_t* out) {
  const int64_t all = blocks_of(entry.bytes);
  if (blocks != all) {
    uint64_t* slot = scratch + 3 * index;
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
    found[0] = found[1] = found[2] = 0;
  }
  const Value value = finish(sums, entry.facts);
  out[2 * index] = static_cast<int64_t>(value.low);
  out[2 * index + 1] = static_cast<int64_t>(value.high);
}

// The sums of `width` neighbouring threads, a power of two; all of them are here together.
__device__ Sums together(Sums sums, int width, unsigned mask) {
  for (int other = width / 2; other > 0; other /= 2) {
    sums.low += __shfl_xor_sync(mask, static_cast<unsigned long long>(sums.low), other);
    sums.high += __shfl_xor_sync(mask, static_cast<unsigned long long>(sums.high), other);
  }
  return sums;
}

__device__ void walk_table(const Table& table, uint64_t* scratch, int64_t* out) {
  const int group = threadIdx.x / kGroup, thread = threadIdx.x % kGroup;
  const TeamRun run = team_run(table, blockIdx.x, gridDim.x, kTeam);
  if (run.in_one) {
    __shared__ Sums parts[kWarps];
    const Entry entry = entry_at(table, run.index);
    const Sums part = together(add_turns(entry, run, group, kTeam, thread), 32, 0xFFFFFFFFu);
    if (threadIdx.x % 32 == 0) {
      parts[threadIdx.x / 32] = part;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      Sums sums;
      for (const Sums& one : parts) {
        sums.low += one.low;
        sums.high += one.high;
      }
      settle(run.index, entry, sums, run.end - run.begin, scratch, out);
    }
    return;
  }
  // The threads of a group are together, the groups of a warp need not be.
  const unsigned mask = 0xFFu << (threadIdx.x % 32 / kGroup * kGroup);
  walk(
      table,
      blockIdx.x * kTeam + group,
      gridDim.x * kTeam,
      thread,
      [=](int64_t index, const Entry& entry, const Sums& sums, int64_t blocks) {
        const Sums all = together(sums, kGroup, mask);
        if (thread == 0) {
          settle(index, entry, all, blocks, scratch, out);
        }
      });
}

__global__ void __launch_bounds__(kThreads) fingerprint_arguments_kernel(
    const __grid_constant__ Arguments arguments,
    int64_t count,
    int64_t blocks,
    uint64_t* scratch,
    int resident,
    int64_t* out) {
  walk_table(
      {arguments.words, count, blocks},
      scratch != nullptr ? scratch : resident_scratch[resident],
      out);
}

__global__ void __launch_bounds__(kThreads) fingerprint_table_kernel(
    const int64_t* words, int64_t count, int64_t blocks, uint64_t* scratch, int64_t* out) {
  walk_table({words, count, blocks}, scratch, out);
}

// As many thread blocks as the current device holds at once, or as there is work for.
template <typename Kernel>
cudaError_t grid_for(Kernel kernel, int64_t blocks, unsigned& grid) {
  int device = 0, processors = 0, resident = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (status == cudaSuccess) {
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0);
  }
  const int64_t most = static_cast<int64_t>(processors) * std::max(resident, 1);
  grid = static_cast<unsigned>(std::max<int64_t>(1, std::min(most, (blocks + kTeam - 1) / kTeam)));
  return status;
}

}  // namespace

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
  const cudaError_t status = grid_for(fingerprint_arguments_kernel, blocks, grid);
  if (status != cudaSuccess) {
    return status;
  }
  fingerprint_arguments_kernel<<<grid, kThreads, 0, stream>>>(
      arguments, count, blocks, scratch, resident, out);
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
  const cudaError_t status = grid_for(fingerprint_table_kernel, blocks, grid);
  if (status != cudaSuccess) {
    return status;
  }
  fingerprint_table_kernel<<<grid, kThreads, 0, stream>>>(words, count, blocks, scratch, out);
  return cudaGetLastError();
}

}  // namespace gradext::fingerprint
