// Right operands into panels (gemm.h), and the in-register transpose that this takes. Included by gemm.h.
#pragma once

namespace tilewright {
namespace {

// In-register transpose of kLanes vectors: log2(kLanes) rounds of swapping ever smaller off-diagonal blocks.
template <typename A, int kWidth = kLanes<A> / 2>
inline TILEWRIGHT_INLINE void transpose(Vec<A> (&v)[kLanes<A>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<A>; ++i) {
    if ((i & kWidth) == 0) exchange_blocks<A, kWidth>(v[i], v[i + kWidth]);
  }
  if constexpr (kWidth > 1) transpose<A, kWidth / 2>(v);
}

// dst[k][j] = src[j * stride + k] for j < n (<= lanes), k < K; zeros for n <= j < lanes. dst rows are dst_row elements
// apart.
template <typename T>
void pack_transposed(int64_t K, int64_t n, const T* src, int64_t stride, Acc<T>* dst, int64_t dst_row) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  for (int64_t k = 0; k < K; k += kStep) {
    const int64_t width = K - k < kStep ? K - k : kStep;
    Vec<A> block[kLanes<A>];
    for (int64_t j = 0; j < kStep; ++j) {
      block[j] = j >= n ? Vec<A>{} : width == kStep ? load(src + j * stride + k) : load(src + j * stride + k, width);
    }
    transpose<A>(block);
    for (int64_t i = 0; i < width; ++i) store(dst + (k + i) * dst_row, block[i]);
  }
}

// dst[k][j] = src[k * stride + j] for j < n (<= kTileCols); zeros behind. One panel of a right operand with contiguous
// rows.
template <typename T>
void pack_rows(int64_t K, int64_t n, const T* src, int64_t stride, Acc<T>* dst) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < kTileCols<A>; j += kStep) {
      const int64_t width = n - j;
      const T* from = src + k * stride + j;
      store(dst + k * kTileCols<A> + j, width >= kStep ? load(from) : width > 0 ? load(from, width) : Vec<A>{});
    }
  }
}

// Two whole panels at once. Four lines of a row in a run instead of two: where rows are a power of two apart, lines
// that were fetched early are evicted before the next panel asks for them (1.6x the rate at 1024 and 2048 columns).
template <typename T>
void pack_two_panels(int64_t K, const T* src, int64_t stride, Acc<T>* dst) {
  using A = Acc<T>;
  for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < 2 * kTileCols<A>; j += kLanes<A>) {
      A* panel = j < kTileCols<A> ? dst : dst + (K - 1) * kTileCols<A>;
      store(panel + k * kTileCols<A> + j, load(src + k * stride + j));
    }
  }
}

// Element by element, for operands with no unit stride.
template <typename T>
void pack_strided(int64_t K, int64_t n, const T* src, int64_t row, int64_t col, Acc<T>* dst) {
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t j = 0; j < kTileCols<Acc<T>>; ++j) {
      dst[k * kTileCols<Acc<T>> + j] = j < n ? load(src + k * row + j * col, 1)[0] : Acc<T>(0);
    }
  }
}

// Elements that pack_right writes for a right operand of K x N.
template <typename A>
inline int64_t packed_size(int64_t K, int64_t N) {
  return (N + kTileCols<A> - 1) / kTileCols<A> * kTileCols<A> * K;
}

// right[K, N], element (k, n) at src[k * row + n * col], into panels.
template <typename T>
void pack_right(int64_t K, int64_t N, const T* src, int64_t row, int64_t col, Acc<T>* panels) {
  using A = Acc<T>;
  int64_t n = 0;
  if (col == 1) {
    for (; n + 2 * kTileCols<A> <= N; n += 2 * kTileCols<A>) pack_two_panels(K, src + n, row, panels + n * K);
  }
  for (; n < N; n += kTileCols<A>) {
    const int64_t width = N - n < kTileCols<A> ? N - n : kTileCols<A>;
    A* panel = panels + n * K;
    if (col == 1) {
      pack_rows(K, width, src + n, row, panel);
    } else if (row == 1) {
      for (int64_t j = 0; j < kTileCols<A>; j += kLanes<A>) {
        pack_transposed(K, width - j, src + (n + j) * col, col, panel + j, kTileCols<A>);
      }
    } else {
      pack_strided(K, width, src + n * col, row, col, panel);
    }
  }
}

}  // namespace
}  // namespace tilewright
