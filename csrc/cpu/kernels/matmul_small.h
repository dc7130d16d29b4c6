// The two paths of matmul.h for few rows or few columns, where packing would cost more than the product.
#pragma once
#include "cpu/kernels/matmul_blocks.h"

namespace tilewright {
namespace {

// --- dot ---
// C tile of kRows x kCols = kLanes dot products over one stretch of K.
template <typename T, int kRows>
struct DotElement {
  using type = ProductElement<T>;
};
// One row alone is computed as native computes it, in float32: no product rounds, no denormal is lost, and memory is
// the limit.
template <typename T>
struct DotElement<T, 1> {
  using type = Acc<T>;
};

template <typename T, int kRows, int kCols>
void dot_tile(int64_t depth, const T* const (&a)[kRows], const T* const (&b)[kCols], Acc<T> (&total)[kRows * kCols]) {
  using A = Acc<T>;
  using E = typename DotElement<T, kRows>::type;
  using Traits = ElementTraits<E>;
  constexpr int64_t kStep = kLanes<E> * kDepthOf<E>;
  Vec<A> sums[kRows * kCols] = {};
  const auto step = [&](int64_t k, auto load_at) TILEWRIGHT_INLINE {
    Vec<E> left[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) left[i] = load_at(a[i] + k);
#pragma GCC unroll 16
    for (int j = 0; j < kCols; ++j) {
      const Vec<E> right = load_at(b[j] + k);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) sums[i * kCols + j] = fma(left[i], right, sums[i * kCols + j]);
    }
  };
  int64_t k = 0;
  for (; k + kStep <= depth; k += kStep) step(k, [](const T* p) TILEWRIGHT_INLINE { return Traits::load_along(p); });
  if (k < depth) step(k, [n = depth - k](const T* p) TILEWRIGHT_INLINE { return Traits::load_along(p, n); });
  transpose<A>(sums);  // lane t of the vectors' sum is now dot product t
#pragma GCC unroll 16
  for (int width = kRows * kCols / 2; width > 0; width /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  store(total, sums[0]);
}

template <typename T>
struct DotOperands {
  const T* a;  // rows K-contiguous
  int64_t a_row;
  const T* b;  // columns K-contiguous
  int64_t b_col;
};

template <typename T, int kRows>
void dot_range(const DotOperands<T>& at, int64_t rows, int64_t cols, int64_t depth, Acc<T>* c, int64_t c_row,
               bool accumulate) {
  constexpr int kCols = static_cast<int>(kLanes<Acc<T>>) / kRows;
  for (int64_t col = 0; col < cols; col += kCols) {
    const T* b[kCols];
    // Behind the edge the last column is computed again rather than tested for.
    for (int j = 0; j < kCols; ++j) b[j] = at.b + smaller(col + j, cols - 1) * at.b_col;
    for (int64_t row = 0; row < rows; row += kRows) {
      const T* a[kRows];
      for (int i = 0; i < kRows; ++i) a[i] = at.a + smaller(row + i, rows - 1) * at.a_row;
      Acc<T> total[kRows * kCols];
      dot_tile<T, kRows, kCols>(depth, a, b, total);
      for (int64_t i = 0; i < smaller(kRows, rows - row); ++i) {
        for (int64_t j = 0; j < smaller(kCols, cols - col); ++j) {
          Acc<T>& out = c[(row + i) * c_row + col + j];
          out = accumulate ? out + total[i * kCols + j] : total[i * kCols + j];
        }
      }
    }
  }
}

// src[i * row + k * col] for i < rows, k < depth, as rows that are contiguous along k.
template <typename T>
void copy_to_rows(const T* src, int64_t row, int64_t col, int64_t rows, int64_t depth, T* dst) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < depth; ++k) dst[i * depth + k] = src[i * row + k * col];
  }
}

template <typename T>
void dot_product(const MatmulArgs<T>& args, const ItemPointers<T>& item, const MatmulPart& part, Acc<T>* scratch) {
  using A = Acc<T>;
  constexpr int kMostRows = kLanes<A> / 4 > 0 ? kLanes<A> / 4 : 1;
  const int64_t rows = part.row_end - part.row_begin, cols = part.col_end - part.col_begin;
  A* acc = scratch;
  int64_t acc_row = cols;
  A* copies = scratch + (rows * cols + 15) / 16 * 16;
  if constexpr (kIsAccumulator<T>) {
    acc = item.c + part.row_begin * args.c_row + part.col_begin;
    acc_row = args.c_row;
    copies = scratch;
  }
  T* left_copy = reinterpret_cast<T*>(copies);
  T* right_copy = left_copy + (args.a_col == 1 ? 0 : rows * args.K);
  for (int64_t r = 0; r < args.reduce_count; ++r) {
    const MatmulWalk::Step offset = args.reduce_count == 1 ? MatmulWalk::Step{0, 0, 0, 0} : args.reduce.at(r);
    DotOperands<T> at{item.a + offset.a + part.row_begin * args.a_row, args.a_row,
                      item.b + offset.b + part.col_begin * args.b_col, args.b_col};
    if (args.a_col != 1) {
      copy_to_rows(at.a, args.a_row, args.a_col, rows, args.K, left_copy);
      at.a = left_copy;
      at.a_row = args.K;
    }
    if (args.b_row != 1) {
      copy_to_rows(at.b, args.b_col, args.b_row, cols, args.K, right_copy);
      at.b = right_copy;
      at.b_col = args.K;
    }
    // The tile's shape follows the whole product; each dot product is the same chain in any of them.
    if (args.M == 1 || kMostRows == 1) {
      dot_range<T, 1>(at, rows, cols, args.K, acc, acc_row, r > 0);
    } else if (args.M == 2 || kMostRows == 2) {
      dot_range < T, kMostRows<2 ? 1 : 2>(at, rows, cols, args.K, acc, acc_row, r > 0);
    } else {
      dot_range<T, kMostRows>(at, rows, cols, args.K, acc, acc_row, r > 0);
    }
  }
  if (!kIsAccumulator<T> || has_epilogue(args))
    finish_rows(args, item, acc, acc_row, part.row_begin, rows, part.col_begin, cols);
}

// --- stream ---
// Rows of B that one pass over the columns takes: each is read front to back, as prefetchers like it.
constexpr int64_t kStreamDepth = 64;

constexpr int stream_vectors(int rows) {
  const int fit = (kHasTileUnit ? 28 : kTileRows * kTileVectors) / rows;  // vectors, also beside a tile unit
  return fit >= 8 ? 8 : fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

template <typename T, int kRows>
void stream_rows(int64_t depth, const Acc<T>* a, int64_t a_row, int64_t a_col, const T* b, int64_t b_row, Acc<T>* c,
                 int64_t c_row, int64_t cols, bool accumulate, Acc<T>* tail) {
  using A = Acc<T>;
  constexpr int kVectors = stream_vectors(kRows);
  constexpr int64_t kWide = kVectors * kLanes<A>;
  int64_t col = 0;
  for (; col + kWide <= cols; col += kWide) {
    gemm_tile<A, kRows, kVectors, T>(depth, a, a_row, a_col, b + col, b_row, c + col, c_row, kWide, {accumulate});
  }
  for (; col + kLanes<A> <= cols; col += kLanes<A>) {
    gemm_tile<A, kRows, 1, T>(depth, a, a_row, a_col, b + col, b_row, c + col, c_row, kLanes<A>, {accumulate});
  }
  if (col == cols) return;
  for (int64_t k = 0; k < depth; ++k) store(tail + k * kLanes<A>, load(b + k * b_row + col, cols - col));
  gemm_tile<A, kRows, 1>(depth, a, a_row, a_col, tail, kLanes<A>, c + col, c_row, cols - col, {accumulate});
}

template <typename T, int kRows = kMatmulStreamRows>
void stream_of_rows(int64_t rows, int64_t depth, const Acc<T>* a, int64_t a_row, int64_t a_col, const T* b,
                    int64_t b_row, Acc<T>* c, int64_t c_row, int64_t cols, bool accumulate, Acc<T>* tail) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return stream_of_rows<T, kRows - 1>(rows, depth, a, a_row, a_col, b, b_row, c, c_row, cols, accumulate, tail);
    }
  }
  stream_rows<T, kRows>(depth, a, a_row, a_col, b, b_row, c, c_row, cols, accumulate, tail);
}

template <typename T>
void stream_product(const MatmulArgs<T>& args, const ItemPointers<T>& item, const MatmulPart& part, Acc<T>* scratch) {
  using A = Acc<T>;
  const int64_t rows = part.row_end - part.row_begin, cols = part.col_end - part.col_begin;
  A* tail = scratch;
  A* left_copy = tail + kStreamDepth * 16;
  A* acc = left_copy + (kStreamDepth * kMatmulStreamRows);
  int64_t acc_row = cols;
  if constexpr (kIsAccumulator<T>) {
    acc = item.c + part.row_begin * args.c_row + part.col_begin;
    acc_row = args.c_row;
  }
  const DepthBlocks blocks = blocks_of_items(args, args.K == 0 ? 1 : (args.K + kStreamDepth - 1) / kStreamDepth);
  for (int64_t index = 0; index < blocks.count; ++index) {
    const DepthRange range = depth_range<A>(args, blocks, index);
    const T* a = item.a + range.offset.a + part.row_begin * args.a_row + range.begin * args.a_col;
    const T* b = item.b + range.offset.b + range.begin * args.b_row + part.col_begin;
    const A* left = left_copy;
    int64_t left_row = range.depth, left_col = 1;
    if constexpr (kIsAccumulator<T>) {
      left = a;
      left_row = args.a_row;
      left_col = args.a_col;
    } else {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < range.depth; ++k) {
          left_copy[i * range.depth + k] = load(a + i * args.a_row + k * args.a_col, 1)[0];
        }
      }
    }
    stream_of_rows<T>(rows, range.depth, left, left_row, left_col, b, args.b_row, acc, acc_row, cols, index > 0, tail);
  }
  if (!kIsAccumulator<T> || has_epilogue(args))
    finish_rows(args, item, acc, acc_row, part.row_begin, rows, part.col_begin, cols);
}

}  // namespace
}  // namespace tilewright
