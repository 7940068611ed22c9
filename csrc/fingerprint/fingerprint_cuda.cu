// The kernel: one launch for any number of tensors of any size. Groups of eight threads walk the
// work list of worklist.h; what they find is added to three words of scratch a tensor (low, high,
// blocks done), and who adds a tensor's last block finishes it.
#define GRADEXT_NO_ATEN
#include "fingerprint.h"
#include "worklist.h"

#include <algorithm>
#include <cstring>

namespace gradext::fingerprint {
namespace {

constexpr int kThreads = 256;

struct Arguments {
  int64_t words[kArgumentWords];
};

__device__ void add(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

// A group's part of one tensor. All eight threads are here together; groups of one warp need not
// be.
__device__ void flush(
    int64_t index, const Entry& entry, Sums sums, int64_t blocks, uint64_t* scratch, int64_t* out) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned mask = 0xFFu << (lane / kGroup * kGroup);
  for (int other = kGroup / 2; other > 0; other /= 2) {
    sums.low += __shfl_xor_sync(mask, static_cast<unsigned long long>(sums.low), other);
    sums.high += __shfl_xor_sync(mask, static_cast<unsigned long long>(sums.high), other);
  }
  if (lane % kGroup != 0) {
    return;
  }
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
    sums.low = *reinterpret_cast<volatile uint64_t*>(slot);
    sums.high = *reinterpret_cast<volatile uint64_t*>(slot + 1);
  }
  const Value value = finish(sums, entry.facts);
  out[2 * index] = static_cast<int64_t>(value.low);
  out[2 * index + 1] = static_cast<int64_t>(value.high);
}

__device__ void walk_table(const Table& table, uint64_t* scratch, int64_t* out) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t groups = static_cast<int64_t>(gridDim.x) * (kThreads / kGroup);
  walk(
      table,
      thread / kGroup,
      groups,
      static_cast<int>(thread % kGroup),
      [=](int64_t index, const Entry& entry, const Sums& sums, int64_t blocks) {
        flush(index, entry, sums, blocks, scratch, out);
      });
}

__global__ void __launch_bounds__(kThreads) fingerprint_arguments_kernel(
    const __grid_constant__ Arguments arguments,
    int64_t count,
    int64_t blocks,
    uint64_t* scratch,
    int64_t* out) {
  walk_table({arguments.words, count, blocks}, scratch, out);
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
  constexpr int64_t kGroups = kThreads / kGroup;
  const int64_t most = static_cast<int64_t>(processors) * std::max(resident, 1);
  grid =
      static_cast<unsigned>(std::max<int64_t>(1, std::min(most, (blocks + kGroups - 1) / kGroups)));
  return status;
}

}  // namespace

cudaError_t launch_arguments(
    const int64_t* words,
    int64_t size,
    int64_t count,
    int64_t blocks,
    uint64_t* scratch,
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
      arguments, count, blocks, scratch, out);
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
