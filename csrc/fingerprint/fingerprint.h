// Computes the content fingerprint: 128 bits of a tensor's dtype, shape and bytes in logical order,
// the same on every device. What it is: docs/fingerprint.md. The arithmetic: mix.h.
#pragma once

#include "fingerprint/mix.h"

#ifdef GRADEXT_WITH_CUDA
#include "fingerprint/worklist.h"

#include <cuda_runtime_api.h>
#endif

#ifndef GRADEXT_NO_ATEN  // the .cu includes no ATen header
#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#endif

namespace gradext::fingerprint {

#ifndef GRADEXT_NO_ATEN
// --- For C++ callers. With or without the GIL; no op is dispatched and no tensor made. ---

// A strided CPU tensor that has its bytes (no fake or meta tensor, no freed storage, no wrapper).
bool can_fingerprint(const at::Tensor& tensor);

// Only of a tensor for which can_fingerprint holds. Large ones are read by torch's thread pool,
// unless the caller is inside a parallel region already.
Value of_cpu(const at::Tensor& tensor);
// One parallel pass for all; out[i] belongs to tensors[i].
void of_cpu_list(c10::ArrayRef<at::Tensor> tensors, Value* out);

// --- What the ops do (CPU and CUDA): int64[2] and int64[n, 2], on the tensors' device. ---
// Raise c10::Error, one line, for tensors without bytes and for a list on several devices.
at::Tensor fingerprint(const at::Tensor& tensor);
at::Tensor fingerprint_list(at::TensorList tensors);
#endif

#ifdef GRADEXT_WITH_CUDA
// --- The kernels (fingerprint_cuda.cu). Plain pointers only; the device must be current. ---

// Words of a table that fit in the arguments of a launch: 4 KB is what every driver takes.
constexpr int64_t kArgumentWords = 496;

// Scratch that lies on the device for good, so that a call with few tensors is one launch and
// nothing else: a place may be used by one stream only, outside captures.
constexpr int kResidentPlaces = 64;
constexpr int64_t kResidentTensors = 16;

// One contiguous tensor that is read as it is stored, from a multiple of 16.
cudaError_t launch_plain(
    const Plain& plain, uint64_t* scratch, int resident, int64_t* out, cudaStream_t stream);
// Adds the work list in `words` (host memory, at most kArgumentWords; copied into the launch).
cudaError_t launch_arguments(
    const int64_t* words,
    int64_t size,
    int64_t count,
    int64_t blocks,
    uint64_t* scratch,  // 3 words a tensor, zeros; null: the resident scratch
    int resident,       // its place, where scratch is null; for at most kResidentTensors
    int64_t* out,       // 2 words a tensor
    cudaStream_t stream);
// The same for a work list in device memory, of any length.
cudaError_t launch_table(
    const int64_t* words,
    int64_t count,
    int64_t blocks,
    uint64_t* scratch,
    int64_t* out,
    cudaStream_t stream);
#endif

}  // namespace gradext::fingerprint
