// A row of a [rows, cols] matrix in the registers of a group of threads.
//
//   threads   0      1     ...  P-1  | 0      1  ...          P = threads of a row
//   columns   0..V-1 V..2V-1  ...    | P*V ...                V = elements of one access, I = accesses of a thread
//
// Accesses beyond `cols` are left out; cols is a multiple of V.
#pragma once
#include "cuda/launch.cuh"
#include "cuda/vec.cuh"

namespace tilewright::gpu {

template <int kVecIn, int kItemsIn, int kThreadsIn, int kBlockIn>
struct RowShape {
  static constexpr int kVec = kVecIn, kItems = kItemsIn, kThreads = kThreadsIn, kBlock = kBlockIn;
  static constexpr int kRowsOfBlock = kBlock / kThreads;
  static constexpr int64_t kCapacity = int64_t{kVec} * kItems * kThreads;

  __device__ static __forceinline__ int group() { return static_cast<int>(threadIdx.x) / kThreads; }
  // The first column of a thread's item.
  __device__ static __forceinline__ int64_t column(int item) {
    return (static_cast<int64_t>(item) * kThreads + static_cast<int>(threadIdx.x) % kThreads) * kVec;
  }
};

// Calls body(item, column) for each access of this thread that lies inside the row.
template <typename Shape, typename Body>
__device__ __forceinline__ void for_each_access(int64_t cols, const Body& body) {
#pragma unroll
  for (int item = 0; item < Shape::kItems; ++item) {
    const int64_t column = Shape::column(item);
    if (column < cols) body(item, column);
  }
}

// The same in two steps, read(column) and body(item, column, what it gave), for kAtOnce accesses at a time: read does
// nothing but load, so that all their loads are under way before the first is waited for.
template <typename Shape, int kAtOnce, typename Read, typename Body>
__device__ __forceinline__ void for_each_read(int64_t cols, const Read& read, const Body& body) {
  constexpr int kBatch = kAtOnce < Shape::kItems ? kAtOnce : Shape::kItems;
#pragma unroll
  for (int first = 0; first < Shape::kItems; first += kBatch) {
    decltype(read(int64_t{})) value[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (Shape::column(first + i) < cols) value[i] = read(Shape::column(first + i));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (Shape::column(first + i) < cols) body(first + i, Shape::column(first + i), value[i]);
    }
  }
}

// Is a base pointer, and with cols every row, aligned for accesses of kVec elements?
template <int kVec, typename T>
bool is_aligned(const T* pointer, int64_t cols) {
  constexpr int64_t kBytes = sizeof(T) * kVec;
  return reinterpret_cast<uintptr_t>(pointer) % kBytes == 0 && cols % kVec == 0;
}

}  // namespace tilewright::gpu
