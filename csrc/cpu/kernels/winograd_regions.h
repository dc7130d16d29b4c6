// Regions of planes as Winograd's transforms want them: pixels whose channels are neighbours. Planes are transposed in
// registers, a vector of channels by a vector of pixels, as they are read into a region and written from it.
#pragma once
#include "cpu/kernels/conv2d_epilogue.h"
#include "cpu/kernels/conv2d_pack.h"

namespace tilewright {
namespace {

// Tile rows [begin, end) of one image.
struct TileRows {
  int64_t image, begin, end;
};

// Positions (y + i, x + j) of an image for i < height, j < width, `pixel` elements apart, row by row.
struct Region {
  int64_t y, x, height, width, pixel;
};

// Planes are as many streams, more than processors follow by themselves: their lines are asked for 32 pixels ahead, two
// of AVX-512's vectors (Zen 4, 8x64x56x56: 2.0 -> 2.5x of native; 64 pixels ahead 2.4x).
constexpr int64_t kPixelsAhead = 32;

constexpr int64_t kRegionUnit = 16;  // whole vectors of any ISA

inline int64_t padded_channels(int64_t channels) { return (channels + kRegionUnit - 1) / kRegionUnit * kRegionUnit; }

template <int kPixels, int kTaps>
int64_t winograd_scratch(const WinogradBlock& block, int64_t channels) {
  const int64_t rows = kPixels * (block.row_end - block.row_begin) + kTaps - 1;
  const int64_t cols = kPixels * (block.col_end - block.col_begin) + kTaps - 1;
  return rows * cols * padded_channels(channels);
}

// Neighbouring pixels of a plane and the pixels of a region they belong to.
template <int64_t kCount>
struct PixelPlaces {
  int64_t at[kCount];
};

// Calls body(first pixel's offset in a plane, count, places in the region) for at most kCount pixels at once that are
// neighbours in the plane, over rows [y_begin, y_end) and columns [x_begin, x_end) of the image.
template <int64_t kCount, typename T, typename Body>
inline void for_each_pixels(const ConvImages<T>& images, const Region& region, int64_t y_begin, int64_t y_end,
                            int64_t x_begin, int64_t x_end, const Body& body) {
  const bool joined = x_begin == 0 && x_end == images.width && images.y_stride == images.width;
  const int64_t width = x_end - x_begin, length = joined ? width * (y_end - y_begin) : width;
  for (int64_t y = y_begin; y < y_end; y += joined ? y_end - y_begin : 1) {
    int64_t row = y - region.y, x = x_begin;
    for (int64_t p = 0; p < length; p += kCount) {
      PixelPlaces<kCount> places;
      const int64_t count = smaller(kCount, length - p);
      for (int64_t i = 0; i < count; ++i) {
        places.at[i] = (row * region.width + x - region.x) * region.pixel;
        if (++x == x_end) {
          x = x_begin;
          ++row;
        }
      }
      body(y * images.y_stride + x_begin + p, count, places);
    }
  }
}

// Positions outside the image are zeros.
template <typename T>
void read_region(const ConvImages<const T>& in, const T* image, int64_t channels, const Region& region, Acc<T>* out) {
  using A = Acc<T>;
  const auto inside = [](int64_t at, int64_t size) { return larger(0, smaller(at, size)); };
  const int64_t y_begin = inside(region.y, in.height), y_end = inside(region.y + region.height, in.height);
  const int64_t x_begin = inside(region.x, in.width), x_end = inside(region.x + region.width, in.width);
  for (int64_t i = 0; i < region.height; ++i) {
    A* row = out + i * region.width * region.pixel;
    const bool empty = region.y + i < y_begin || region.y + i >= y_end || x_begin >= x_end;
    const int64_t low = empty ? region.width : larger(0, x_begin - region.x), high = x_end - region.x;
    fill_zero(row, low * region.pixel);
    if (!empty) fill_zero(row + high * region.pixel, (region.width - high) * region.pixel);
  }
  if (x_begin >= x_end) return;
  constexpr int64_t kStep = kLanes<A>;
  for_each_pixels<kStep>(in, region, y_begin, y_end, x_begin, x_end,
                         [&](int64_t offset, int64_t count, const PixelPlaces<kStep>& places) {
                           for (int64_t c = 0; c < channels; c += kStep) {
                             const T* from = image + c * in.c_stride + offset;
                             prefetch_lines<kStep>(from + kPixelsAhead, in.c_stride);
                             Vec<A> block[kLanes<A>];
                             for (int64_t j = 0; j < kStep; ++j) {
                               block[j] = c + j >= channels ? Vec<A>{}
                                          : count == kStep  ? load(from + j * in.c_stride)
                                                            : load(from + j * in.c_stride, count);
                             }
                             transpose<A>(block);
                             for (int64_t i = 0; i < count; ++i) store(out + places.at[i] + c, block[i]);
                           }
                         });
}

// Sums in a region, through the epilogue, to planes.
template <typename T>
void write_region(const Region& region, const Acc<T>* sums, const ConvImages<T>& out, int64_t image,
                  const ConvEpilogue<T>& epilogue, int64_t filter_begin, int64_t filters) {
  constexpr int64_t kStep = kLanes<Acc<T>>;
  const int64_t plane = image * out.n_stride + filter_begin * out.c_stride;
  const Acc<T>* bias = epilogue.bias != nullptr ? epilogue.bias + filter_begin : nullptr;
  for_each_pixels<kStep>(out, region, region.y, region.y + region.height, region.x, region.x + region.width,
                         [&](int64_t offset, int64_t count, const PixelPlaces<kStep>& places) {
                           for (int64_t f = 0; f < filters; f += kStep) {
                             const int64_t place = plane + offset + f * out.c_stride;
                             prefetch_lines<kStep>(out.data + place + kPixelsAhead, out.c_stride);
                             finish_transposed<T>(
                                 epilogue, [&](int64_t i) TILEWRIGHT_INLINE { return sums + places.at[i] + f; }, count,
                                 smaller(kStep, filters - f), bias != nullptr ? bias + f : nullptr, place, out.data,
                                 out.c_stride);
                           }
                         });
}

}  // namespace
}  // namespace tilewright
