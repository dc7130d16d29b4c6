// Logits of a tile: masks read through their strides, what they and the diagonal leave to visit, and the exponential.
// Without a float mask they stay q . k: scale and log2(e) enter at the exponential, as one factor.
#pragma once
#include "cpu/kernels/attention_blocks.h"
#include "cpu/kernels/exp2.h"

namespace tilewright {
namespace {

// v with lanes n and above replaced.
template <typename A>
inline Vec<A> first_lanes(Vec<A> v, int64_t n, Vec<A> others) {
  using Index = decltype(v == v);
  Index lane;
  for (int i = 0; i < kLanes<A>; ++i) lane[i] = i;
  using Lane = __typeof__(lane[0] + lane[0]);
  return lane < static_cast<Lane>(n) ? v : others;
}

template <typename A>
struct BoolLanes {
  typedef uint8_t type __attribute__((vector_size(kLanes<A>)));
};

// 0 where the mask byte says attend, -Inf elsewhere; lanes n and above are -Inf.
template <typename A>
inline Vec<A> load_bool_mask(const uint8_t* mask, int64_t n) {
  typename BoolLanes<A>::type bytes{};
  if (n >= kLanes<A>) {
    __builtin_memcpy(&bytes, mask, sizeof(bytes));
  } else {
    __builtin_memcpy(&bytes, mask, static_cast<uint64_t>(n));
  }
  using Index = decltype(Vec<A>{} == Vec<A>{});
  return __builtin_convertvector(bytes, Index) != 0 ? Vec<A>{} : broadcast<A>(-kInfinity<A>);
}

// s = s * scale + mask, for the n keys of one query.
template <typename M, typename A>
inline void mask_logits(A* s, int64_t n, const M* mask, int64_t col, A scale) {
  const Vec<A> same = broadcast<A>(load(mask, 1)[0]);
  for_each_vector<A>(n, [=](int64_t c, int64_t lanes) TILEWRIGHT_INLINE {
    const Vec<A> added = col == 0 ? same : load(mask + c, lanes);
    store(s + c, fma(load(s + c), broadcast<A>(scale), added));
  });
}

template <typename A>
inline void mask_logits(A* s, int64_t n, const uint8_t* mask, int64_t col, A) {
  const Vec<A> same = broadcast<A>(*mask != 0 ? A(0) : -kInfinity<A>);
  for_each_vector<A>(n, [=](int64_t c, int64_t lanes) TILEWRIGHT_INLINE {
    store(s + c, load(s + c) + (col == 0 ? same : load_bool_mask<A>(mask + c, lanes)));
  });
}

// Some key of the n <= kTileCols is attended to. col = 1.
template <typename A, typename M>
inline bool attends_to_any(const M* mask, int64_t n) {
  if constexpr (sizeof(M) == 1) {
    uint8_t any = 0;
    for (int64_t c = 0; c < n; ++c) any |= mask[c];
    return any != 0;
  } else {
    const Vec<A> masked = broadcast<A>(-kInfinity<A>);
    auto any = masked != masked;
    for_each_vector<A>(n, [&](int64_t c, int64_t lanes) TILEWRIGHT_INLINE {
      any |= first_lanes<A>(load(mask + c, lanes), lanes, masked) != masked;
    });
    uint64_t words[sizeof(any) / 8], sum = 0;
    __builtin_memcpy(words, &any, sizeof(any));
    for (const uint64_t word : words) sum |= word;
    return sum != 0;
  }
}

struct ColumnRange {
  int64_t begin, end;
};

// The columns of [0, n), in whole panels, that hold every key some row attends to: padding and windows given as masks
// are skipped like causal blocks.
template <typename A, typename M>
inline ColumnRange attended_columns(const M* mask, int64_t mask_row, int64_t rows, int64_t n) {
  if (mask_row == 0) rows = 1;
  const auto panel_attends = [=](int64_t c) TILEWRIGHT_INLINE {
    for (int64_t r = 0; r < rows; ++r) {
      if (attends_to_any<A>(mask + r * mask_row + c, smaller(kTileCols<A>, n - c))) return true;
    }
    return false;
  };
  int64_t begin = 0, last = round_up(n, kTileCols<A>) - kTileCols<A>;
  while (last >= 0 && !panel_attends(last)) last -= kTileCols<A>;
  if (last < 0) return {0, 0};
  while (!panel_attends(begin)) begin += kTileCols<A>;
  return {begin, smaller(n, last + kTileCols<A>)};
}

// Calls body(mask pointer of the mask's type at (row, key)).
template <typename T, typename Body>
inline TILEWRIGHT_INLINE void with_mask(const AttentionProblem<T>& p, const void* mask, int64_t row, int64_t key,
                                        const Body& body) {
  const int64_t offset = row * p.mask_row + key * p.mask_col;
  switch (p.mask_kind) {
    case MaskKind::kNone:
      return;
    case MaskKind::kBool:
      return body(static_cast<const uint8_t*>(mask) + offset);
    case MaskKind::kElement:
      return body(static_cast<const T*>(mask) + offset);
    case MaskKind::kAccumulator:
      return body(static_cast<const Acc<T>*>(mask) + offset);
  }
}

// The part of keys [key, key + n) that queries [row, row + rows) have to look at, relative to key.
template <typename T>
inline ColumnRange columns_to_visit(const AttentionProblem<T>& p, const void* mask, int64_t row, int64_t rows,
                                    int64_t key, int64_t n) {
  if (p.causal) n = smaller(n, row + rows - key);
  if (n <= 0) return {0, 0};
  ColumnRange range{0, n};
  if (p.mask_col == 1) {
    with_mask(p, mask, row, key, [&](const auto* at) { range = attended_columns<Acc<T>>(at, p.mask_row, rows, n); });
  }
  return range;
}

template <typename T>
inline bool has_scaled_logits(const AttentionProblem<T>& p) {
  return p.mask_kind == MaskKind::kElement || p.mask_kind == MaskKind::kAccumulator || !(p.scale > 0);
}

// What turns s into a logit.
template <typename T>
inline Acc<T> logit_factor(const AttentionProblem<T>& p) {
  return has_scaled_logits(p) ? Acc<T>(1) : p.scale;
}

template <typename T>
inline Acc<T> base_2_factor(const AttentionProblem<T>& p) {
  return static_cast<Acc<T>>(logit_factor(p) * kLog2E);
}

// e^(factor * (s - base)) for kScaled, where the difference is taken first because a mask may hold the lowest finite
// value; else e^(factor * s - base). factor and, in the second case, base are given in units of log2(e).
template <bool kScaled, typename E, typename A = SumOf<E>>
inline TILEWRIGHT_INLINE Vec<A> exponential(Vec<A> s, Vec<A> factor, Vec<A> base) {
  return exp2_for<E>(kScaled ? (s - base) * factor : fma(s, factor, -base));
}

// Masks the logits s of queries [row, row + rows) and keys [key, key + n); columns from n up to a whole vector become
// -Inf, so that later loops need no tails.
template <typename T>
inline void mask_tile(const AttentionProblem<T>& p, const void* mask, int64_t row, int64_t rows, int64_t key, int64_t n,
                      Acc<T>* s, int64_t s_row) {
  using A = Acc<T>;
  const Vec<A> masked = broadcast<A>(-kInfinity<A>);
  const bool has_float_mask = p.mask_kind == MaskKind::kElement || p.mask_kind == MaskKind::kAccumulator;
  if (!has_float_mask && has_scaled_logits(p)) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < n; c += kLanes<A>) store(s + r * s_row + c, load(s + r * s_row + c) * p.scale);
    }
  }
  with_mask(p, mask, row, key, [&](const auto* at) {
    for (int64_t r = 0; r < rows; ++r) mask_logits(s + r * s_row, n, at + r * p.mask_row, p.mask_col, p.scale);
  });
  if (!p.causal && n % kLanes<A> == 0) return;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t visible = p.causal ? larger(0, smaller(n, row + r + 1 - key)) : n;
    A* logits = s + r * s_row;
    int64_t c = visible / kLanes<A> * kLanes<A>;
    if (c < visible) {
      store(logits + c, first_lanes<A>(load(logits + c), visible - c, masked));
      c += kLanes<A>;
    }
    for (; c < n; c += kLanes<A>) store(logits + c, masked);
  }
}

}  // namespace
}  // namespace tilewright
