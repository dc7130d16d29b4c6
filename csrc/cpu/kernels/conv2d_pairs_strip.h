// Convolution of pairs of bfloat16, and of float32 and float16 in parts of it, without patches: the part of the image
// that a block of output rows reads is copied once, in phases (conv2d_phases.h), whole pixels of `channels` values.
// Rows of a tile are then neighbouring pixels of the strip, for every tap:
//
//   out[p, f] = sum over taps t and channels c of strip[offset_t + p, c] * weights[(t, c), f]
//
// Of few channels the taps of a row are joined: pixels lie one behind the other, a stride of the window is what moves a
// row of a tile on, and a stretch of the product is a row of taps,
//
//   out[p, f] = sum over rows of taps i, values v of strip[offset_i + p * stride * channels + v] * weights[(i, v), f]
//
// Tiles begin with every row of pixels, which is cut evenly, or go on from row to row where that takes less: what they
// compute between two rows, and behind the last pixel, is dropped. On tile units, tiles are whole ones.
#pragma once
#include "cpu/kernels/conv2d_phases.h"
#include "cpu/kernels/conv2d_strip_parts.h"

namespace tilewright {
namespace {

// Which pixels of the strip each tile computes: of `rows` rows that are `pitch` apart, the first window.width of each
// are wanted.
class StripTiles {
 public:
  StripTiles(const PhaseLayout& layout, const ConvWindow& window, int64_t rows) : pitch_(layout.pitch) {
    const int64_t of_row = tile_count(window.width), in_all = tile_count((rows - 1) * layout.pitch + window.width);
    // What a tile of n rows takes, beside a row's worth of time for its weights and its end.
    const int64_t row = kHasTileUnit ? of_row * kTileRows : window.width;
    const bool by_rows = rows * (row + of_row) < in_all * (kTileRows + 1);
    lines_ = by_rows ? rows : 1;
    tiles_ = by_rows ? of_row : in_all;
    length_ = by_rows ? window.width : in_all * kTileRows;
  }
  // body(position in the strip of a tile's first pixel, of what follows its last): no division a tile, which that of a
  // network's first layer would notice.
  template <typename Body>
  void for_each(const Body& body) const {
    const int64_t size = kHasTileUnit ? kTileRows : length_ / tiles_, longer = kHasTileUnit ? 0 : length_ % tiles_;
    for (int64_t line = 0, start = 0; line < lines_; ++line, start += pitch_) {
      for (int64_t tile = 0, begin = start; tile < tiles_; ++tile) {
        const int64_t end = smaller(begin + size + (tile < longer), start + length_);
        body(begin, end);
        begin = end;
      }
    }
  }

 private:
  int64_t pitch_, lines_, tiles_, length_;  // tiles of a line, and its pixels
};

// Filters computed at once: the sums of one tile of pixels stay in L1 (18 KB).
constexpr int64_t kStripFilters = 128;
inline int64_t strip_sums_row(int64_t filters) { return pair_sums_row(smaller(filters, kStripFilters)); }

// Offsets of the taps, the strips with what the last tile reads behind each, sums.
template <typename T>
struct StripScratch {
  int64_t offsets, strip, sums;  // bytes of each
  int64_t part_step;             // values from one strip to the next: an odd number of half lines, none too few
  StripScratch(const ConvWindow& window, const PhaseLayout& layout, int64_t channels, int64_t filters)
      : offsets((window.rows * window.cols * int64_t{sizeof(int32_t)} + 63) / 64 * 64),
        sums(kTileRows * strip_sums_row(filters) * int64_t{sizeof(float)}),
        part_step((((layout.size + kTileRows) * channels + 31) / 32 | 1) * 32) {
    strip = kPartsOf<T> * part_step * int64_t{sizeof(BF16)};
  }
  int64_t bytes() const { return offsets + strip + sums; }
};

// Values of one pixel in the strip: whole steps.
inline int64_t strip_pixel(int64_t channels) { return (channels + kPairStep - 1) / kPairStep * kPairStep; }

template <typename T>
int64_t conv_strip_bytes(const ConvWindow& window, int64_t channels, int64_t filters, int64_t rows) {
  return StripScratch<T>(window, PhaseLayout(window, rows), strip_pixel(channels), filters).bytes();
}

template <typename T>
bool joins_taps(const ConvPairsArgs<T>& args) {
  return args.run > 0;
}

// Stretches of a patch that lie in one piece, taps or rows of joined ones, and pairs of each.
template <typename T>
int64_t strip_taps(const ConvPairsArgs<T>& args) {
  return joins_taps(args) ? args.window.rows : args.window.rows * args.window.cols;
}
template <typename T>
int64_t strip_stretch(const ConvPairsArgs<T>& args) {
  return joins_taps(args) ? pairs_of(args.run) : strip_pixel(args.channels) / 2;
}

constexpr int64_t kPixelsAhead = 3;

// One row of one phase: `pitch` pixels, every stride-th of the image's row from position x on, zeros outside.
template <typename T>
inline void copy_strip_row(const ConvImages<const T>& in, const T* row, int64_t x, int64_t stride, int64_t pitch,
                           int64_t channels, BF16* dst, int64_t part_step) {
  const int64_t pixel = strip_pixel(channels);
  const int64_t low = x >= 0 ? 0 : smaller((-x + stride - 1) / stride, pitch);
  const int64_t end = in.width <= x ? 0 : smaller((in.width - x + stride - 1) / stride, pitch);
  const int64_t high = larger(low, end);
  clear_parts<T>(dst, part_step, low * pixel);
  const T* from = row + (x + low * stride) * in.x_stride;
  if (stride == 1 && pixel == channels && in.x_stride == channels) {
    put_values(dst + low * pixel, part_step, from, (high - low) * pixel);
  } else {
    for (int64_t p = low; p < high; ++p, from += stride * in.x_stride) {
      // Pixels that are not neighbours are not fetched ahead by the processor.
      if (stride > 1) prefetch_rows<0>(from + kPixelsAhead * stride * in.x_stride, 0, 1, channels);
      put_values(dst + p * pixel, part_step, from, channels);
      if (pixel > channels) clear_parts<T>(dst + p * pixel + channels, part_step, pixel - channels);
    }
  }
  clear_parts<T>(dst + high * pixel, part_step, (pitch - high) * pixel);
}

// The same of a row whose pixels lie one behind the other, `values` of them from position x on.
template <typename T>
inline void copy_joined_row(const ConvImages<const T>& in, const T* row, int64_t x, int64_t values, BF16* dst,
                            int64_t part_step) {
  const int64_t begin = x * in.x_stride, low = smaller(larger(-begin, 0), values);
  const int64_t high = larger(low, smaller(in.width * in.x_stride - begin, values));
  clear_parts<T>(dst, part_step, low);
  put_values(dst + low, part_step, row + begin + low, high - low);
  clear_parts<T>(dst + high, part_step, values - high);
}

// What output rows from `row` on read of an image.
template <typename T>
inline void copy_strip(const ConvImages<const T>& in, const T* image, const ConvWindow& window,
                       const PhaseLayout& layout, int64_t row, int64_t channels, bool joined, BF16* strip,
                       int64_t part_step) {
  const int64_t first_y = row * window.stride_y + window.first_y;
  for (int64_t vertical = 0; vertical < window.stride_y; ++vertical) {
    for (int64_t phase = 0; phase < window.stride_x; ++phase) {
      for (int64_t v = 0; v < layout.height; ++v, strip += layout.pitch * strip_pixel(channels)) {
        const int64_t iy = first_y + v * window.stride_y + vertical;
        if (iy < 0 || iy >= in.height) {
          clear_parts<T>(strip, part_step, layout.pitch * strip_pixel(channels));
        } else if (joined) {
          copy_joined_row(in, image + iy * in.y_stride, window.first_x, layout.pitch * channels, strip, part_step);
        } else {
          copy_strip_row(in, image + iy * in.y_stride, window.first_x + phase, window.stride_x, layout.pitch, channels,
                         strip, part_step);
        }
      }
    }
  }
}

// A block of output rows of one image, its strips copied.
struct StripBlock {
  int64_t n, row, rows;  // image, first row of the output, rows
  PhaseLayout layout;
  const int32_t* offsets;
  const BF16* strip;
  int64_t part_step;
  float* sums;
  int64_t sums_row;
};

// The sums of a tile of `rows` pixels from a position of the strip on, for filters [filter, filter + filters) of a
// group.
template <typename T>
inline void sum_strip_tile(const ConvPairsArgs<T>& args, const StripBlock& block, int64_t position, int64_t rows,
                           const Pair* weights, int64_t filters) {
  const int64_t taps = strip_taps(args), stretch = strip_stretch(args), elements = strip_pixel(args.channels) / 2;
  const int64_t panel = taps * stretch * kPairPanel;
  const Pair* left = reinterpret_cast<const Pair*>(block.strip) + position * elements;
  for (int64_t f = 0; f < filters; f += kPairPanel, weights += kPartsOf<T> * panel) {
    multiply_stretches(StripProduct<T>{left, elements, block.part_step / 2, weights, panel}, stretch, block.offsets,
                       taps, rows, block.sums + f, block.sums_row, filters - f);
  }
}

// Pixels [pixel, pixel + count) of a tile, neighbours in row y of the block from column x on, to the output.
template <typename T>
inline void finish_strip_run(const ConvPairsArgs<T>& args, const StripBlock& block, int64_t y, int64_t x, int64_t pixel,
                             int64_t count, int64_t first, int64_t filters) {
  const ConvImages<T>& out = args.out;
  const float* bias = args.epilogue.bias != nullptr ? args.epilogue.bias + first : nullptr;
  const float* sums = block.sums + pixel * block.sums_row;
  const int64_t place =
      block.n * out.n_stride + (block.row + y) * out.y_stride + x * out.x_stride + first * out.c_stride;
  if (out.c_stride == 1) {
    for (int64_t i = 0; i < count; ++i) {
      finish_row<T>(args.epilogue, sums + i * block.sums_row, filters, bias, 0.0f, place + i * out.x_stride, out.data,
                    1);
    }
    return;
  }
  constexpr int64_t kStep = kLanes<float>;
  for (int64_t f = 0; f < filters; f += kStep) {
    for (int64_t i = 0; i < count; i += kStep) {
      const float* corner = sums + i * block.sums_row + f;
      finish_transposed<T>(
          args.epilogue, [&](int64_t row) TILEWRIGHT_INLINE { return corner + row * block.sums_row; },
          smaller(kStep, count - i), smaller(kStep, filters - f), bias != nullptr ? bias + f : nullptr,
          place + f * out.c_stride + i, out.data, out.c_stride);
    }
  }
}

// Its pixels to the output, those of positions [begin, end), from filter `first` of all on.
template <typename T>
inline void finish_strip_tile(const ConvPairsArgs<T>& args, const StripBlock& block, int64_t begin, int64_t end,
                              int64_t first, int64_t filters, SumCheck& check) {
  const int64_t pitch = block.layout.pitch;
  const bool checks = args.checks && !joins_taps(args);
  for (int64_t p = 0; begin + p < end;) {
    const int64_t y = (begin + p) / pitch, x = (begin + p) % pitch, left = end - begin - p;
    if (y >= block.rows) return;
    const int64_t count = larger(0, smaller(left, args.window.width - x));
    for (int64_t i = 0; checks && i < count; ++i) {
      const float* sums = block.sums + (p + i) * block.sums_row;
      for_each_vector<float>(filters, [&](int64_t f, int64_t n) TILEWRIGHT_INLINE { check.add(load(sums + f, n)); });
    }
    if (count > 0) finish_strip_run(args, block, y, x, p, count, first, filters);
    p += smaller(left, pitch - x);
  }
}

// Whether all of a strip of bfloat16 is finite, as SumCheck says it. Joined taps ask this: of what they multiply by
// weights of 0, only the image may not be.
inline void check_strip(const BF16* strip, int64_t values, SumCheck& check) {
  constexpr int64_t kStep = 2 * kLanes<Pair>;
  for (int64_t i = 0; i < values; i += kStep) {
    const int64_t n = smaller(kStep, values - i);
    check.zeros = fma(n == kStep ? load_pairs(strip + i) : load_pairs(strip + i, n), VecU32{}, check.zeros);
  }
}

template <typename T>
float conv_strip(const ConvPairsArgs<T>& args, int64_t n, int64_t row_begin, int64_t row_end, int64_t filter_begin,
                 int64_t filter_end, void* scratch) {
  const TileUnitScope unit;
  const ConvWindow& window = args.window;
  const int64_t C = args.channels, taps = strip_taps(args), elements = strip_pixel(C) / 2;
  const int64_t rows = row_end - row_begin, panels = (args.filters + kPairPanel - 1) / kPairPanel;
  const PhaseLayout layout(window, rows);
  const StripScratch<T> parts(window, layout, strip_pixel(C), filter_end - filter_begin);
  auto* offsets = static_cast<int32_t*>(scratch);
  auto* strip = reinterpret_cast<BF16*>(static_cast<char*>(scratch) + parts.offsets);
  auto* sums = reinterpret_cast<float*>(static_cast<char*>(scratch) + parts.offsets + parts.strip);
  ConvWindow stretches = window;
  if (joins_taps(args)) stretches.cols = 1;
  find_tap_offsets(stretches, layout, offsets);
  for (int64_t t = 0; t < taps; ++t) offsets[t] *= static_cast<int32_t>(elements);
  const StripBlock block{
      n, row_begin, rows, layout, offsets, strip, parts.part_step, sums, strip_sums_row(filter_end - filter_begin)};
  const StripTiles tiles(layout, window, rows);
  SumCheck check;
  const int64_t of_filter = kPartsOf<T> * taps * strip_stretch(args);
  for (int64_t group = 0; group < args.groups; ++group) {
    copy_strip(args.in, args.in.data + n * args.in.n_stride + group * C, window, layout, row_begin, C, joins_taps(args),
               strip, parts.part_step);
    if (args.checks && joins_taps(args)) check_strip(strip, layout.size * C, check);
    const Pair* weights = static_cast<const Pair*>(args.weight) + group * panels * kPairPanel * of_filter;
    for (int64_t filter = filter_begin; filter < filter_end; filter += kStripFilters) {
      const int64_t filters = smaller(kStripFilters, filter_end - filter);
      tiles.for_each([&](int64_t begin, int64_t end) {
        sum_strip_tile(args, block, begin, end - begin, weights + filter * of_filter, filters);
        finish_strip_tile(args, block, begin, end, group * args.filters + filter, filters, check);
      });
    }
  }
  return check.magnitude();
}

}  // namespace
}  // namespace tilewright
