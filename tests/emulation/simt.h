// A CUDA grid on one CPU thread: blocks run one after another, the threads of a block are fibers.
//
// __syncthreads, the shuffles and the votes are rendezvous. Between two of them a warp runs as far as it can before the
// next one starts, so that code which lacks a barrier reads what is not written yet; the order of blocks, warps and lanes
// comes from TILEWRIGHT_EMULATION_SEED (0 or absent: ascending). Shared memory holds 0xff bytes (NaN in every float
// format) when a block starts. What CUDA leaves undefined ends the launch with a simt::Violation that says which thread
// did what.
//
// include/ has the CUDA spellings of all this. docs/gpu.md has the rules, and what no emulation can show.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

#include "vector_types.h"

// Of the fiber that has the CPU.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024, kMaxBlockZ = 64;
constexpr unsigned kMaxGridX = 0x7fffffffu, kMaxGridYZ = 65535;
constexpr size_t kSharedDefault = 48 * 1024, kSharedOptIn = 227 * 1024;
constexpr int kMultiprocessors = 4;  // few: kernels that size their grid by it go round their loops here

// Code that CUDA leaves undefined: divergent barriers, lanes missing from a mask, writes behind the shared memory.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Shape {
  dim3 grid, block;
  size_t dynamic_bytes;
};

enum class Collective { shfl, shfl_up, shfl_down, shfl_xor, ballot, any, all, syncwarp };

// Runs body once for every thread of the grid, whose limits the caller has checked. Throws Violation.
void run(const Shape& shape, const std::string& kernel, const std::function<void()>& body);

// --- called by the threads of a grid ----------------------------------------------------------------------------------
unsigned char* dynamic_shared();
void sync_block(std::source_location where);
// Waits until every lane of the mask is here with the same call. The result is the value of lane `source` for shuffles,
// and for votes the bits of the lanes whose value is not 0.
uint64_t rendezvous(Collective call, unsigned mask, unsigned source, uint64_t value, std::source_location where);
unsigned lane();
[[noreturn]] void fail(const std::string& what, std::source_location where);

}  // namespace simt
