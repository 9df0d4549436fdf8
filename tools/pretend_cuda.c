/* A CUDA that computes nothing, for tools/pretend_cuda.py: device memory is host memory, copies
 * are copies, products and graphs are only counted. It lets ONNX Runtime's CUDA provider be made on a
 * machine without a GPU, so that it says which nodes it takes, what it copies in a step, and whether
 * it can capture one. Loaded before the real libraries; types of the header as far as they matter. */
#include <driver_types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define DOES_NOTHING(name) EXPORT int name(void) { return 0; }
#define MAKES_ONE(name) EXPORT int name(void **made) { *made = calloc(1, 65536); return 0; }

static int capturing, products;

DOES_NOTHING(cuTensorMapEncodeTiled)
DOES_NOTHING(__cudaPushCallConfiguration)
DOES_NOTHING(cudaSetDevice)
DOES_NOTHING(cudaDeviceSynchronize)
DOES_NOTHING(cudaGetLastError)
DOES_NOTHING(cudaPeekAtLastError)
DOES_NOTHING(cudaStreamDestroy)
DOES_NOTHING(cudaStreamSynchronize)
DOES_NOTHING(cudaStreamWaitEvent)
DOES_NOTHING(cudaEventRecord)
DOES_NOTHING(cudaEventDestroy)
DOES_NOTHING(cudaFuncSetAttribute)
DOES_NOTHING(cudaGraphDestroy)
DOES_NOTHING(cudaGraphExecDestroy)
DOES_NOTHING(cudaPointerGetAttributes)
DOES_NOTHING(cublasSetStream_v2)
DOES_NOTHING(cublasSetWorkspace_v2)
DOES_NOTHING(cublasSetMathMode)
DOES_NOTHING(cublasDestroy_v2)
DOES_NOTHING(cublasLtDestroy)
DOES_NOTHING(cudnnSetStream)
DOES_NOTHING(cudnnDestroy)
MAKES_ONE(cudaStreamCreate)
MAKES_ONE(cudaEventCreate)
MAKES_ONE(cublasCreate_v2)
MAKES_ONE(cublasLtCreate)
MAKES_ONE(cudnnCreate)

EXPORT int cudaStreamCreateWithFlags(void **made, unsigned flags) { return cudaStreamCreate(made); }
EXPORT int cudaEventCreateWithFlags(void **made, unsigned flags) { return cudaEventCreate(made); }
EXPORT int cudaGetDevice(int *device) { *device = 0; return 0; }
EXPORT int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
EXPORT int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
EXPORT int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
EXPORT size_t cudnnGetVersion(void) { return 92801; }
EXPORT size_t cudnnGetCudartVersion(void) { return 13000; }
EXPORT const char *cudnnGetErrorString(int status) { return "pretended"; }
EXPORT int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }

EXPORT int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *free_bytes = *total = (size_t)80 << 30;
  return 0;
}

EXPORT int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9
           : attribute == cudaDevAttrMultiProcessorCount  ? 132
           : attribute == cudaDevAttrMaxThreadsPerBlock   ? 1024
                                                          : 0;
  return 0;
}

EXPORT int cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  memset(found, 0, sizeof *found);
  strcpy(found->name, "pretended, as an H100");
  found->major = 9;
  found->multiProcessorCount = 132;
  found->totalGlobalMem = (size_t)80 << 30;
  found->warpSize = 32;
  found->maxThreadsPerBlock = found->maxThreadsDim[0] = 1024;
  found->maxThreadsPerMultiProcessor = 2048;
  found->sharedMemPerBlock = 49152;
  found->sharedMemPerBlockOptin = 232448;
  found->sharedMemPerMultiprocessor = 233472;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = 65535;
  found->regsPerBlock = 65536;
  return 0;
}

EXPORT int cudaMalloc(void **memory, size_t size) {
  *memory = aligned_alloc(256, (size + 255) / 256 * 256);
  return *memory ? 0 : cudaErrorMemoryAllocation;
}
EXPORT int cudaMallocHost(void **memory, size_t size) { return cudaMalloc(memory, size); }
EXPORT int cudaHostAlloc(void **memory, size_t size, unsigned flags) {
  return cudaMalloc(memory, size);
}
EXPORT int cudaFree(void *memory) { free(memory); return 0; }
EXPORT int cudaFreeHost(void *memory) { free(memory); return 0; }
EXPORT int cudaMemset(void *memory, int value, size_t size) {
  memset(memory, value, size);
  return 0;
}
EXPORT int cudaMemsetAsync(void *memory, int value, size_t size, void *stream) {
  return cudaMemset(memory, value, size);
}
EXPORT int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
  memmove(to, from, size);
  return 0;
}
EXPORT int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  if (capturing) fprintf(stderr, "pretend: copy %zu kind %d\n", size, kind);
  return cudaMemcpy(to, from, size, kind);
}

EXPORT int __cudaPopCallConfiguration(struct dim3 *grid, struct dim3 *block, size_t *shared,
                                      void **stream) {
  memset(grid, 0, sizeof *grid);
  memset(block, 0, sizeof *block);
  *shared = 0;
  *stream = NULL;
  return 0;
}

DOES_NOTHING(cudaLaunchKernel)
DOES_NOTHING(cudaLaunchKernelExC)
DOES_NOTHING(cudaLaunchCooperativeKernel)

#define COUNTS(name) EXPORT int name(void) { products++; return 0; }
COUNTS(cublasGemmEx)
COUNTS(cublasGemmStridedBatchedEx)
COUNTS(cublasSgemm_v2)
COUNTS(cublasSgemmStridedBatched)
COUNTS(cublasLtMatmul)

EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) {
  *blocks = 1;
  return 0;
}
EXPORT int cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
  memset(found, 0, sizeof *found);
  return 0;
}
EXPORT int cudaStreamIsCapturing(void *stream, int *status) { *status = capturing; return 0; }
EXPORT int cudaStreamBeginCapture(void *stream, int mode) {
  capturing = 1;
  products = 0;
  return 0;
}
EXPORT int cudaStreamEndCapture(void *stream, void **graph) {
  capturing = 0;
  fprintf(stderr, "pretend: captured, %d products\n", products);
  return cudaStreamCreate(graph);
}
EXPORT int cudaGraphInstantiate(void **made, void *graph, unsigned long long flags) {
  return cudaStreamCreate(made);
}
EXPORT int cudaGraphLaunch(void *graph, void *stream) {
  fprintf(stderr, "pretend: graph launched\n");
  return 0;
}
