// Grids: shared memory, limits, the order of blocks; and the runtime's functions on top.
#include "simt.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>

#include "block.h"
#include "cuda_runtime_api.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {
namespace {

constexpr unsigned char kUnwritten = 0xff;
constexpr size_t kMargin = 4096;  // behind a block's dynamic shared memory: writes there are found

// One launch at a time: what follows is the device.
std::mutex device;
Block block;
alignas(1024) unsigned char dynamic_memory[kSharedOptIn + kMargin];
size_t dynamic_bytes;
cudaError_t last_error = cudaSuccess;
std::map<AnyKernel, int> opted_in;
std::set<AnyKernel> kernels_launched;
uint64_t launches;

// Makes the library's thread_local memory, which is the kernels' static shared memory, exist in the thread that launches.
thread_local volatile unsigned char first_touch;

struct Region {
  const void* inside;
  void* data = nullptr;
  size_t bytes = 0;
};

int find_static_shared(dl_phdr_info* info, size_t, void* result) {
  auto* region = static_cast<Region*>(result);
  const auto address = reinterpret_cast<uintptr_t>(region->inside);
  bool ours = false;
  size_t bytes = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    const uintptr_t start = info->dlpi_addr + header.p_vaddr;
    ours |= header.p_type == PT_LOAD && address >= start && address < start + header.p_memsz;
    if (header.p_type == PT_TLS) bytes = header.p_memsz;
  }
  if (!ours) return 0;
  region->data = info->dlpi_tls_data;
  region->bytes = bytes;
  return 1;
}

Region static_shared() {
  first_touch = 0;
  Region region{reinterpret_cast<const void*>(&find_static_shared)};
  dl_iterate_phdr(&find_static_shared, &region);
  return region;
}

void forget_shared_memory(const Region& static_region) {
  if (static_region.data != nullptr) std::memset(static_region.data, kUnwritten, static_region.bytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(dynamic_memory, sizeof dynamic_memory);
#endif
  std::memset(dynamic_memory, kUnwritten, dynamic_bytes + kMargin);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(dynamic_memory + dynamic_bytes, sizeof dynamic_memory - dynamic_bytes);
#endif
}

void check_margin() {
#if !defined(__SANITIZE_ADDRESS__)
  for (size_t i = 0; i < kMargin; ++i) {
    if (dynamic_memory[dynamic_bytes + i] != kUnwritten) {
      throw Violation("a write " + std::to_string(i) + " bytes behind the dynamic shared memory of " +
                      std::to_string(dynamic_bytes) + " bytes");
    }
  }
#endif
}

uint64_t seed() {
  const char* text = std::getenv("TILEWRIGHT_EMULATION_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 0;
}

std::string demangled(const char* type) {
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(type, nullptr, nullptr, nullptr), &std::free);
  return name != nullptr ? name.get() : type;
}

bool exceeds_limits(const Shape& shape, AnyKernel kernel) {
  const dim3 grid = shape.grid, threads = shape.block;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads.x == 0 || threads.y == 0 || threads.z == 0) return true;
  if (grid.x > kMaxGridX || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) return true;
  if (threads.x > kMaxThreads || threads.y > kMaxThreads || threads.z > kMaxBlockZ) return true;
  if (uint64_t{threads.x} * threads.y * threads.z > kMaxThreads) return true;
  const auto allowed = opted_in.find(kernel);
  const size_t limit = allowed != opted_in.end() ? static_cast<size_t>(allowed->second) : kSharedDefault;
  return shape.dynamic_bytes > std::max(limit, kSharedDefault);
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

unsigned char* dynamic_shared() { return dynamic_memory; }
void sync_block(std::source_location where) { block.sync_block(where); }
uint64_t rendezvous(Collective call, unsigned mask, unsigned source, uint64_t value, std::source_location where) {
  return block.rendezvous(call, mask, source, value, where);
}
unsigned lane() { return block.current().lane; }
void fail(const std::string& what, std::source_location where) { block.fail(what, where); }

void run(const Shape& shape, const std::string& kernel, const std::function<void()>& body) {
  const uint64_t blocks = uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z, chosen = seed();
  Random random{chosen};
  // i -> (start + i * stride) % blocks goes through all blocks where stride and blocks have no common divisor.
  uint64_t start = 0, stride = 1;
  if (chosen != 0) {
    start = random.next() % blocks;
    do {
      stride = 1 + random.next() % blocks;
    } while (std::gcd(stride, blocks) != 1);
  }
  dynamic_bytes = shape.dynamic_bytes;
  blockDim = shape.block;
  gridDim = shape.grid;
  const Region static_region = static_shared();
  for (uint64_t i = 0; i < blocks; ++i) {
    const auto linear = static_cast<uint64_t>((start + static_cast<unsigned __int128>(i) * stride) % blocks);
    blockIdx = {static_cast<unsigned>(linear % shape.grid.x),
                   static_cast<unsigned>(linear / shape.grid.x % shape.grid.y),
                   static_cast<unsigned>(linear / shape.grid.x / shape.grid.y)};
    forget_shared_memory(static_region);
    try {
      block.run(shape.block.x * shape.block.y * shape.block.z, body, chosen != 0 ? &random : nullptr);
      check_margin();
    } catch (const Violation& violation) {
      throw Violation("emulated kernel " + kernel + ", block " + described(blockIdx) + ": " + violation.what());
    }
  }
}

cudaError_t set_attribute(AnyKernel kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard lock(device);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // a hint
  if (value < 0 || static_cast<size_t>(value) > kSharedOptIn) return remember(cudaErrorInvalidValue);
  opted_in[kernel] = value;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, AnyKernel kernel, const char* type,
                   const std::function<void()>& body) {
  const std::lock_guard lock(device);
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization) return remember(cudaErrorNotSupported);
  }
  const Shape shape{config.gridDim, config.blockDim, config.dynamicSmemBytes};
  if (exceeds_limits(shape, kernel)) return remember(cudaErrorInvalidConfiguration);
  ++launches;
  kernels_launched.insert(kernel);
  run(shape, demangled(type), body);
  return cudaSuccess;
}

}  // namespace simt

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotSupported:
      return "operation not supported";
  }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() { return simt::last_error; }
cudaError_t cudaGetLastError() { return std::exchange(simt::last_error, cudaSuccess); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return simt::remember(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = simt::kMaxThreads;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = simt::kSharedDefault;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = simt::kWarp;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = simt::kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = simt::kSharedOptIn;
      return cudaSuccess;
  }
  return simt::remember(cudaErrorInvalidValue);
}

// What the tests count, for ctypes.
extern "C" {
uint64_t simt_launches() { return simt::launches; }

// How many different kernels were launched; their distances from the library's start go to `places`, if there is room.
size_t simt_kernels(uint64_t* places, size_t room) {
  size_t count = 0;
  for (const simt::AnyKernel kernel : simt::kernels_launched) {
    Dl_info library;
    dladdr(reinterpret_cast<void*>(kernel), &library);
    if (count < room) places[count] = reinterpret_cast<uint64_t>(kernel) - reinterpret_cast<uint64_t>(library.dli_fbase);
    ++count;
  }
  return count;
}
}
