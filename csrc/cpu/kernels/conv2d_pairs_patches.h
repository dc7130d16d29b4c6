// Patches of channels_last images in bfloat16, copied as they are: rows of a left operand of pairs (gemm_pairs.h),
// k = (tap, channel), zeros behind the last value up to a whole step.
#pragma once
#include "cpu/kernels/conv2d_pack.h"

namespace tilewright {
namespace {

using Pair = BF16Pair;
constexpr int64_t kPairPanel = kTileCols<Pair>;
constexpr int64_t kPairStep = kDepthOf<Pair> * kStepOf<Pair>;  // values of k

// n values; `kWhole` may write up to a vector behind them.
template <bool kWhole>
inline void copy_values(BF16* dst, const BF16* src, int64_t n) {
  constexpr int64_t kStep = 2 * kLanes<Pair>;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) store_pairs(dst + i, load_pairs(src + i));
  if (i == n) return;
  if constexpr (kWhole) {
    store_pairs(dst + i, load_pairs(src + i, n - i));
  } else {
    store_pairs(dst + i, load_pairs(src + i, n - i), n - i);
  }
}

inline void clear_values(BF16* dst, int64_t n) {
  constexpr int64_t kStep = 2 * kLanes<Pair>;
  for (int64_t i = 0; i < n; i += kStep) store_pairs(dst + i, VecU32{}, smaller(n - i, kStep));
}

// dst[e - begin] = src[e] for begin <= e < end where valid_begin <= e < valid_end, else 0.
inline void copy_clipped(BF16* dst, const BF16* src, int64_t begin, int64_t end, int64_t valid_begin,
                         int64_t valid_end) {
  const int64_t from = smaller(larger(begin, valid_begin), end), to = larger(smaller(end, valid_end), from);
  clear_values(dst, from - begin);
  copy_values<false>(dst + (from - begin), src + from, to - from);
  clear_values(dst + (to - begin), end - to);
}

// How patches are cut into runs: taps next to each other in memory make one run.
struct PatchRuns {
  int64_t taps, length, cols;  // taps and elements of a run, runs in a row of taps
};
inline PatchRuns patch_runs(const ConvImages<const BF16>& in, const ConvWindow& window, int64_t channels) {
  const int64_t taps = window.step_x == 1 && in.x_stride == channels ? window.cols : 1;
  return {taps, taps * channels, window.cols / taps};
}

// One pixel's patch where parts of it lie outside the image, k from k_begin to k_end.
inline void copy_clipped_patch(const ConvImages<const BF16>& in, const ConvWindow& window, int64_t channels,
                               const PatchRuns& runs, const BF16* image, int64_t y, int64_t x, int64_t k_begin,
                               int64_t k_end, BF16* out) {
  const int64_t first = k_begin / runs.length;
  int64_t row = first / runs.cols, col = first % runs.cols, offset = k_begin - first * runs.length;
  for (int64_t k = k_begin; k < k_end;) {
    const int64_t end = smaller(runs.length, offset + k_end - k);
    const int64_t iy = y + row * window.step_y, ix = x + col * window.step_x;
    const bool inside = iy >= 0 && iy < in.height;
    const int64_t low = larger(0, -ix), high = inside ? smaller(runs.taps, in.width - ix) : 0;
    copy_clipped(out, image + iy * in.y_stride + ix * in.x_stride, offset, end, low * channels, high * channels);
    out += end - offset;
    k += end - offset;
    offset = 0;
    if (++col == runs.cols) {
      col = 0;
      ++row;
    }
  }
}

constexpr int64_t kPairBlockK = 384;               // values; as matmul's blocks of pairs
constexpr int64_t kPatchRow = kPairBlockK + 32;    // most values from one patch to the next
constexpr int64_t kMostPatchPieces = kPairBlockK;  // of at least one value

// Values from one patch of K to the next: an odd number of lines, so that a tile's rows do not share L1 sets.
inline int64_t patch_row(int64_t K) { return ((K + 31) / 32 | 1) * 32; }

// The pieces that a patch inside the image is made of, the same for all pixels.
struct PatchPieces {
  struct Piece {
    int64_t offset, length;
  } at[kMostPatchPieces];
  int64_t count = 0;
  int64_t even = 0;  // the length of all pieces where it is the same and no more than a vector, else 0
  PatchPieces(const ConvImages<const BF16>& in, const ConvWindow& window, const PatchRuns& runs, int64_t k_begin,
              int64_t k_end) {
    for (int64_t k = k_begin; k < k_end; ++count) {
      const int64_t run = k / runs.length, offset = k - run * runs.length;
      const int64_t length = smaller(runs.length - offset, k_end - k);
      at[count] = {
          run / runs.cols * window.step_y * in.y_stride + run % runs.cols * window.step_x * in.x_stride + offset,
          length};
      even = k == k_begin || length == even ? length : 0;
      k += length;
    }
    if (even > 2 * kLanes<Pair>) even = 0;
  }
};

// Patches of `count` pixels from `pixel` on, k in [k_begin, k_end), with zeros behind up to a whole step. dst rows are
// dst_row apart; up to a vector is written behind the last.
inline void pack_patches(const ConvImages<const BF16>& in, const ConvWindow& window, int64_t channels, int64_t pixel,
                         int64_t count, int64_t k_begin, int64_t k_end, BF16* dst, int64_t dst_row) {
  const PatchRuns runs = patch_runs(in, window, channels);
  const PatchPieces pieces(in, window, runs, k_begin, k_end);
  const int64_t reach_y = (window.rows - 1) * window.step_y, reach_x = (window.cols - 1) * window.step_x;
  const int64_t length = k_end - k_begin, padding = (kPairStep - length % kPairStep) % kPairStep;
  int64_t x = pixel % window.width, y = pixel / window.width % window.height;
  int64_t n = pixel / (window.width * window.height);
  for (int64_t i = 0; i < count; ++i, dst += dst_row) {
    const int64_t iy = y * window.stride_y + window.first_y, ix = x * window.stride_x + window.first_x;
    const BF16* image = in.data + n * in.n_stride;
    if (iy >= 0 && iy + reach_y < in.height && ix >= 0 && ix + reach_x < in.width) {
      const BF16* from = image + iy * in.y_stride + ix * in.x_stride;
      BF16* out = dst;
      if (pieces.even > 0) {
        for (int64_t p = 0; p < pieces.count; ++p, out += pieces.even) {
          store_pairs(out, load_pairs(from + pieces.at[p].offset, pieces.even));
        }
      } else {
        for (int64_t p = 0; p < pieces.count; out += pieces.at[p].length, ++p) {
          copy_values<true>(out, from + pieces.at[p].offset, pieces.at[p].length);
        }
      }
    } else {
      copy_clipped_patch(in, window, channels, runs, image, iy, ix, k_begin, k_end, dst);
    }
    clear_values(dst + length, padding);
    if (++x == window.width) {
      x = 0;
      if (++y == window.height) {
        y = 0;
        ++n;
      }
    }
  }
}

}  // namespace
}  // namespace tilewright
