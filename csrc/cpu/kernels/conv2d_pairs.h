// Convolution in bfloat16 where the processor multiplies pairs of it (gemm_pairs.h): patches of a block of pixels are
// copied as they are, and products are those of matmul.
//
//   forward        out[pixel, f]  = patches[pixel, k] * weights[k, f]      k = (tap, channel), pairs of neighbours
//   weight grad    sums[f, k]    += dy[pixel, f]^T * patches[pixel, k]     pairs of pixels: dy is turned once for all k
//
// The same product with other windows and weights is the data gradient. A block of k is a multiple of what a step of
// the tile takes, zeros behind the last value.
#pragma once
#include "cpu/kernels/conv2d_epilogue.h"
#include "cpu/kernels/conv2d_pairs_patches.h"
#include "cpu/kernels/matmul_operands.h"
#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
#include "cpu/kernels/gemm_split.h"
#endif

namespace tilewright {
namespace {

// Parts that a value has: bfloat16 is what it is, the others are split (gemm_split.h).
template <typename T>
constexpr int kPartsOf = 1;
template <>
constexpr int kPartsOf<F16> = 2;
template <>
constexpr int kPartsOf<float> = 3;

// --- weights ---

// Into rows of pairs that are zero: k even is the low half. `values` have the bits of bfloat16 on top and no others.
inline void merge_row(Pair* panel, int64_t k, VecU32 values) {
  Pair* row = panel + k / 2 * kPairPanel;
  store(row, load(row) | (k % 2 == 0 ? values >> 16 : values));
}

// The next part of some values, the bits of bfloat16 on top; `values` keep what is left behind it. Rounded by an
// integer addition, ties away from 0: half the instructions of gemm_split.h's conversion, where parts are not stored in
// order. A NaN of the largest payloads passes for a 0 there; it stays in what is left, and the last part, which has no
// more than 8 bits, is taken as it is.
template <bool kLast>
inline TILEWRIGHT_INLINE VecU32 take_part(VecF32& values) {
  constexpr uint32_t kHalf = 0x8000u, kTop = 0xffff0000u;
  VecU32 part = bit_cast<VecU32>(values);
  if constexpr (!kLast) part += kHalf;
  part &= kTop;
  if constexpr (!kLast) values -= bit_cast<VecF32>(part);
  return part;
}
// All of them in order: body(number of the part, part).
template <typename T, typename Body>
inline TILEWRIGHT_INLINE void for_each_part(VecF32 values, const Body& body) {
  constexpr int kLast = kPartsOf<T> - 1;
  for (int part = 0; part < kLast; ++part) body(part, take_part<false>(values));
  body(kLast, take_part<true>(values));
}

// [panel][part][pairs of k][kPairPanel]
template <typename T>
void pack_pair_weights(const ConvWeights<const T>& weights, int64_t K, int64_t panel_begin, int64_t panel_end,
                       void* packed) {
  const int64_t pairs = pairs_of(K), part_step = pairs * kPairPanel;
  for (int64_t f = panel_begin * kPairPanel; f < panel_end * kPairPanel; f += kLanes<float>) {
    Pair* panel = static_cast<Pair*>(packed) + f / kPairPanel * kPartsOf<T> * part_step + f % kPairPanel;
    for (int64_t k = 0; k < kPartsOf<T> * pairs; ++k) store(panel + k * kPairPanel, VecU32{});
    for_each_weight_row(weights, f, [=](int64_t k, VecF32 values) TILEWRIGHT_INLINE {
      for_each_part<T>(values,
                       [=](int part, VecU32 bits) TILEWRIGHT_INLINE { merge_row(panel + part * part_step, k, bits); });
    });
  }
}

// --- forward ---

// From one pixel's sums to the next: whole panels, and a line more, so that rows of a tile do not share L1 sets.
constexpr int64_t pair_sums_row(int64_t filters) { return (filters + kPairPanel - 1) / kPairPanel * kPairPanel + 16; }

// Edges of the blocks of k: whole steps but for the last.
inline int64_t pair_block_edge(int64_t b, int64_t blocks, int64_t K) {
  return smaller(K, (K * b / blocks + kPairStep - 1) / kPairStep * kPairStep);
}

// One group. pixels <= kPairPixels, filters <= kPairFilters, the first a multiple of a panel.
inline void conv_pairs_block(const ConvPairsArgs<BF16>& args, int64_t group, int64_t pixel, int64_t pixels,
                             int64_t filter, int64_t filters, BF16* patches, float* block) {
  const ConvWindow& window = args.window;
  const ConvImages<BF16>& out = args.out;
  ConvImages<const BF16> in = args.in;
  in.data += group * args.channels;
  const int64_t K = window.rows * window.cols * args.channels, pairs = pairs_of(K);
  const int64_t panels = (args.filters + kPairPanel - 1) / kPairPanel;
  const Pair* weight = static_cast<const Pair*>(args.weight) + group * panels * kPairPanel * pairs + filter * pairs;
  // One block's edges are rounded up to whole steps, so blocks are a step smaller than there is room for.
  const int64_t blocks = K <= kPairBlockK ? 1 : (K + kPairBlockK - kPairStep - 1) / (kPairBlockK - kPairStep);
  const int64_t first = group * args.filters + filter;
  const int64_t sums_row = pair_sums_row(filters);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t k = pair_block_edge(b, blocks, K), k_end = pair_block_edge(b + 1, blocks, K);
    const int64_t row = patch_row(k_end - k);
    pack_patches(in, window, args.channels, pixel, pixels, k, k_end, patches, row);
    if (b + 1 == blocks) {
      for_each_pixel_run(out, window, pixel, pixels, [&](int64_t offset, int64_t, int64_t count) {
        prefetch_rows<1>(out.data + offset + first, out.x_stride, count, filters);
      });
    }
    for (int64_t f = 0; f < filters; f += kPairPanel) {
      gemm_panels(pixels, smaller(filters - f, kPairPanel), pairs_of(k_end - k), reinterpret_cast<const Pair*>(patches),
                  row / 2, int64_t{1}, weight + f * pairs + k / 2 * kPairPanel, block + f, sums_row, b > 0);
    }
  }
  const float* bias = args.epilogue.bias != nullptr ? args.epilogue.bias + first : nullptr;
  for_each_pixel_run(out, window, pixel, pixels, [&](int64_t offset, int64_t at, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      finish_row<BF16>(args.epilogue, block + (at + i) * sums_row, filters, bias, 0.0f,
                       offset + i * out.x_stride + first, out.data, 1);
    }
  });
}

inline void conv_pairs(const ConvPairsArgs<BF16>& args, int64_t pixel_begin, int64_t pixel_end, int64_t filter_begin,
                       int64_t filter_end, void* scratch) {
  const TileUnitScope unit;
  BF16* patches = static_cast<BF16*>(scratch);
  float* block = reinterpret_cast<float*>(patches + kPairPixels * kPatchRow);
  for (int64_t group = 0; group < args.groups; ++group) {
    for (int64_t pixel = pixel_begin; pixel < pixel_end; pixel += kPairPixels) {
      for (int64_t f = filter_begin; f < filter_end; f += kPairFilters) {
        conv_pairs_block(args, group, pixel, smaller(kPairPixels, pixel_end - pixel), f,
                         smaller(kPairFilters, filter_end - f), patches, block);
      }
    }
  }
}

// --- weight gradient ---

// Sums of a block of filters, [filter][tap][channel]: how far apart filters and taps lie.
struct PairGradSums {
  float* data;
  int64_t filter_step, tap_step;
};

// Turned dy, tiles of kLeftRows rows left_row apart (of processors without tile units: of columns, and left_row is how
// many), and panels of the positions that taps read, whose panels of channels are panel_step apart; and where the parts
// lie. chain: steps of products in a row, if fewer than gemm_split.h's.
template <typename T>
struct PairGradOperands {
  const Pair* left;
  int64_t left_row, panel_step, left_part = 0, right_part = 0, chain = 0;
};

// One tile of them: `elements` pairs of pixels.
inline void add_tile_product(const PairGradOperands<BF16>&, int64_t elements, const Pair* left, const Pair* right,
                             int64_t rows, int64_t cols, float* out, int64_t out_row, bool accumulate) {
  const int64_t a_row = kHasTileUnit ? elements : 1, a_col = kHasTileUnit ? 1 : kTileRows;
  const auto tile = cols > kLanes<float> ? tile_for_rows<Pair, kTileVectors>(rows) : tile_for_rows<Pair, 1>(rows);
  tile(elements, left, a_row, a_col, right, kPairPanel, out, out_row, cols, TileEnd<float>{accumulate});
}
#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
template <typename T>
void add_tile_product(const PairGradOperands<T>& operands, int64_t elements, const Pair* left, const Pair* right,
                      int64_t rows, int64_t cols, float* out, int64_t out_row, bool accumulate) {
  constexpr int32_t kStart = 0;
  SplitOperands parts{left, operands.left_part, operands.left_row, right, operands.right_part};
  if (operands.chain > 0) parts.longest_chain = operands.chain;
  multiply_split_tile<kPartsOf<T>>(parts, elements, &kStart, 1, {out, out_row, rows, cols, accumulate});
}
#endif

// sums[f][t][c] (+)= turned dy * right_of(tap); a tile of left stays in L1 for all taps.
template <typename T, typename Right>
void add_products(int64_t filters, int64_t taps, int64_t channels, int64_t pixels, const PairGradOperands<T>& operands,
                  const Right& right_of, const PairGradSums& sums, bool accumulate) {
  const int64_t elements = pairs_of(pixels);
  const RowTiles tiles{filters, tile_count(filters)};
  for (int64_t i = 0; i < tiles.count; ++i) {
    const int64_t row = tiles.edge(i), rows = tiles.edge(i + 1) - row;
    for (int64_t t = 0; t < taps; ++t) {
      const Pair* right = right_of(t);
      float* out = sums.data + row * sums.filter_step + t * sums.tap_step;
      for (int64_t c = 0; c < channels; c += kPairPanel, right += operands.panel_step) {
        add_tile_product(operands, elements, operands.left + i * left_tile_size(operands.left_row), right, rows,
                         smaller(channels - c, kPairPanel), out + c, sums.filter_step, accumulate);
      }
    }
  }
}

static_assert(kPairGradLeft * int64_t{sizeof(Pair)} + kPairGradK * kPairGradPixels * int64_t{sizeof(BF16)} +
                  kPairGradPixels * (kPairGradK + 32) * int64_t{sizeof(BF16)} <=
              kPairScratchBytes);
static_assert(kPairPixels * kPatchRow * int64_t{sizeof(BF16)} +
                  kPairPixels * pair_sums_row(kPairFilters) * int64_t{sizeof(float)} <=
              kPairScratchBytes);

// Of all groups: filters [filter_begin, filter_end) of each, at most kPairFilters.
inline void conv_pairs_weight_grad(const ConvPairsGradArgs<BF16>& args, int64_t pixel_begin, int64_t pixel_end,
                                   int64_t k_begin, int64_t k_end, int64_t filter_begin, int64_t filter_end,
                                   void* scratch) {
  const TileUnitScope unit;
  const int64_t K = args.window.rows * args.window.cols * args.channels, filters = filter_end - filter_begin;
  Pair* left = static_cast<Pair*>(scratch);
  Pair* panels = left + kPairGradLeft;
  BF16* patches = reinterpret_cast<BF16*>(panels + kPairGradK / 2 * kPairGradPixels);
  for (int64_t group = 0; group < args.groups; ++group) {
    ConvImages<const BF16> in = args.in;
    in.data += group * args.channels;
    float* sums = args.sums + (group * args.filters + filter_begin) * K;
    for (int64_t pixel = pixel_begin; pixel < pixel_end; pixel += kPairGradPixels) {
      const int64_t pixels = smaller(kPairGradPixels, pixel_end - pixel);
      const RowTiles tiles{filters, tile_count(filters)};
      copy_left(args.grad + pixel * args.grad_row + group * args.filters + filter_begin, 1, args.grad_row, tiles, 0,
                tiles.count, pixels, left);
      for (int64_t k = k_begin; k < k_end; k += kPairGradK) {
        const int64_t k_count = smaller(kPairGradK, k_end - k);
        const int64_t row = patch_row(k_count);
        pack_patches(in, args.window, args.channels, pixel, pixels, k, k + k_count, patches, row);
        pack_right(pixels, k_count, patches, row, int64_t{1}, panels);
        add_products<BF16>(
            filters, 1, k_count, pixels, {left, pairs_of(pixels), kPairPanel * pairs_of(pixels)},
            [=](int64_t) { return panels; }, PairGradSums{sums + k, K, 0}, pixel > pixel_begin);
      }
    }
  }
}

}  // namespace
}  // namespace tilewright
