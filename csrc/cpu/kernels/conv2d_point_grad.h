// The weights' gradient of 1x1 kernels, of float32 and float16 in parts of bfloat16 (gemm_split.h): pixels are what is
// summed over, and both operands are split as they are packed, once for a block of pixels.
//
//   sums[f, c] (+)= sum over p of dy[p, f] * x[p, c]      left: dy turned, pairs of pixels along its rows
//                                                         right: panels of x, pairs of pixels interleaved
//
//   [part][tile of filters][filter][pairs of p]           [part][panel of channels][pairs of p][kPairPanel]
//
// Images in planes have pixels along their rows, channels_last ones across: each is the one operand's order and is
// transposed for the other. Pixels of an image are filled up to whole steps.
#pragma once
#include "cpu/kernels/conv2d_strip_parts.h"

namespace tilewright {
namespace {

// Lane by lane: the next parts of a pair.
template <bool kLast>
inline TILEWRIGHT_INLINE VecU32 take_pairs(VecF32& low, VecF32& high) {
  const VecU32 even = take_part<kLast>(low);
  return even >> 16 | take_part<kLast>(high);
}

// A block of pixels of one image, and some channels of it: element (p, c) at data[p * pixel + c * channel].
template <typename T>
struct PointPixels {
  const T* data;
  int64_t pixel, channel, pixels, channels;
};

// 32 pixels from `first` on of 16 channels or fewer, zeros where there are none: in pairs of a pixel and the 16th
// behind it, the order of K in both operands. A vector is one pixel's channels, or, transposed, a channel's pixels.
template <typename T, typename Store>
inline TILEWRIGHT_INLINE void split_block(const PointPixels<T>& from, int64_t first, bool wants_channels,
                                          const Store& store_pairs_of) {
  constexpr int64_t kStep = kLanes<Pair>;
  const bool across = from.channel == 1;
  const T* data = from.data + first * from.pixel;
  const int64_t rows = across ? from.pixels - first : from.channels,
                cols = across ? from.channels : from.pixels - first;
  const int64_t row = across ? from.pixel : from.channel;
  // The other half of a block lies 16 rows or 16 columns further.
  const int64_t half = across ? kStep * row : kStep, half_rows = across ? kStep : 0, half_cols = across ? 0 : kStep;
  VecF32 low[kStep], high[kStep];
  if (rows >= kStep + half_rows && cols >= kStep + half_cols) {
    for (int64_t i = 0; i < kStep; ++i, data += row) {
      low[i] = load(data);
      high[i] = load(data + half);
      if (across) {
        __builtin_prefetch(data + 2 * half);
        __builtin_prefetch(data + 3 * half);
      }
    }
  } else {
    for (int64_t i = 0; i < kStep; ++i, data += row) {
      low[i] = i < rows ? load(data, smaller(cols, kStep)) : VecF32{};
      const bool is_there = i + half_rows < rows && half_cols < cols;
      high[i] = is_there ? load(data + half, smaller(cols - half_cols, kStep)) : VecF32{};
    }
  }
  if (across != wants_channels) {
    transpose<float>(low);
    transpose<float>(high);
  }
  for (int64_t i = 0; i < kStep; ++i) {
    constexpr int kLast = kPartsOf<T> - 1;
    for (int part = 0; part < kLast; ++part) store_pairs_of(part, i, take_pairs<false>(low[i], high[i]));
    store_pairs_of(kLast, i, take_pairs<true>(low[i], high[i]));
  }
}

// Where a block of pixels lies in scratch, in pairs: left as add_products has it.
template <typename T>
struct PointScratch {
  int64_t pairs, left_row, left_part, right_panel, right_part;
  PointScratch(int64_t pixels, int64_t filters, int64_t channels)
      : pairs(pixels / 2),
        left_row((pairs / kUnitStep | 1) * kUnitStep),  // an odd number of lines: rows do not share L1 sets
        left_part(tile_count(filters) * left_tile_size(left_row)),
        right_panel(pairs * kPairPanel),
        right_part((channels + kPairPanel - 1) / kPairPanel * right_panel) {}
  int64_t size() const { return kPartsOf<T> * (left_part + right_part); }
};

// All channels of them, split. place(c, p): where the first part of channels from c on and of 32 pixels from p on goes,
// as 16 vectors that are `row` pairs apart; the next part is part_step pairs behind it.
template <bool kWantsChannels, typename T, typename Place>
inline void pack_point(const PointPixels<T>& from, int64_t row, int64_t part_step, const Place& place) {
  constexpr int64_t kStep = kLanes<Pair>;
  PointPixels<T> lanes = from;
  for (int64_t p = 0; p < from.pixels; p += 2 * kStep) {
    for (int64_t c = 0; c < from.channels; c += kStep) {
      lanes.data = from.data + c * from.channel;
      lanes.channels = smaller(kStep, from.channels - c);
      Pair* to = place(c, p);
      split_block(lanes, p, kWantsChannels, [=](int part, int64_t i, VecU32 pairs) TILEWRIGHT_INLINE {
        store(to + part * part_step + i * row, pairs);
      });
    }
  }
}

// Filters as rows, from pair `at` on.
template <typename T>
inline void pack_point_left(const PointPixels<T>& from, const PointScratch<T>& sizes, int64_t at, Pair* left) {
  pack_point<false>(from, sizes.left_row, sizes.left_part,
                    [&](int64_t f, int64_t p) { return left + f * sizes.left_row + at + p / 2; });
}

// Channels as columns of panels.
template <typename T>
inline void pack_point_right(const PointPixels<T>& from, const PointScratch<T>& sizes, int64_t at, Pair* right) {
  pack_point<true>(from, kPairPanel, sizes.right_part, [&](int64_t c, int64_t p) {
    return right + c / kPairPanel * sizes.right_panel + c % kPairPanel + (at + p / 2) * kPairPanel;
  });
}

template <typename T>
int64_t point_weight_grad_bytes(const ConvPointGradArgs<T>& args, int64_t filters) {
  const PointScratch<T> sizes(args.blocks.positions(), filters, smaller(args.channels, kPointChannels));
  return sizes.size() * int64_t{sizeof(Pair)};
}

// Blocks [block_begin, block_end) of pixels, filters [filter_begin, filter_end). Returns what `strip` does.
template <typename T>
float point_weight_grad(const ConvPointGradArgs<T>& args, int64_t block_begin, int64_t block_end, int64_t filter_begin,
                        int64_t filter_end, void* scratch) {
  const TileUnitScope unit;
  const int64_t filters = filter_end - filter_begin;
  SumCheck check;
  for (int64_t block = block_begin; block < block_end; ++block) {
    const PointBlocks::Block pixels = args.blocks.at(block);
    const int64_t image_pairs = (pixels.pixels + kPairStep - 1) / kPairStep * kPairStep / 2;
    const int64_t pairs = pixels.images * image_pairs;
    const PointScratch<T> sizes(2 * pairs, filters, smaller(args.channels, kPointChannels));
    Pair* left = static_cast<Pair*>(scratch);
    Pair* right = left + kPartsOf<T> * sizes.left_part;
    const auto pixels_of = [&](const PointImages<T>& images, int64_t n, int64_t channel, int64_t channels) {
      return PointPixels<T>{
          images.data + (pixels.image + n) * images.image + pixels.pixel * images.pixel + channel * images.channel,
          images.pixel, images.channel, pixels.pixels, channels};
    };
    for (int64_t n = 0; n < pixels.images; ++n) {
      pack_point_left(pixels_of(args.grad, n, filter_begin, filters), sizes, n * image_pairs, left);
    }
    for (int64_t first = 0; first < args.channels; first += kPointChannels) {
      const int64_t channels = smaller(kPointChannels, args.channels - first);
      for (int64_t n = 0; n < pixels.images; ++n) {
        pack_point_right(pixels_of(args.in, n, first, channels), sizes, n * image_pairs, right);
      }
      float* sums = args.sums + filter_begin * args.sums_row + first;
      add_products<T>(
          filters, 1, channels, 2 * pairs, {left, sizes.left_row, sizes.right_panel, sizes.left_part, sizes.right_part},
          [=](int64_t) { return right; }, PairGradSums{sums, args.sums_row, 0}, block > block_begin);
      for (int64_t f = 0; block + 1 == block_end && f < filters; ++f) {
        for_each_vector<float>(channels, [&](int64_t c, int64_t width) TILEWRIGHT_INLINE {
          check.add(load(sums + f * args.sums_row + c, width));
        });
      }
    }
  }
  return check.magnitude();
}

}  // namespace
}  // namespace tilewright
