// Winograd's minimal filtering (winograd_transforms.h) over images: tiles are read from images of either format,
// multiplied with the transformed weights or gradients, and written through the epilogue.
#pragma once
#include "cpu/kernels/conv2d_epilogue.h"
#include "cpu/kernels/winograd_regions.h"
#include "cpu/kernels/winograd_transforms.h"

namespace tilewright {
namespace {

// --- images ----------------------------------------------------------------------------------------------------------

// Calls body(rows of one image, its first tile counted from the block's) for every image the block touches.
template <typename Body>
inline void for_each_image(const WinogradBlock& block, int64_t tile_rows, const Body& body) {
  for (int64_t row = block.row_begin; row < block.row_end;) {
    const int64_t n = row / tile_rows, y = row % tile_rows;
    const int64_t rows = smaller(block.row_end - row, tile_rows - y);
    body(TileRows{n, y, y + rows}, (row - block.row_begin) * (block.col_end - block.col_begin));
    row += rows;
  }
}

// Calls body(tile, at) for the block's tiles, kPixels apart: at[i * kSide + j] is position (i, j) of the tile's kSide x
// kSide, whose channels are neighbours; zeros outside of the image. Images of planes are transposed in scratch first.
template <int kPixels, int kSide, typename T, typename Body>
inline void for_each_tile(const ConvImages<const T>& images, int64_t height, int64_t offset_y, int64_t offset_x,
                          int64_t channels, const WinogradBlock& block, Acc<T>* scratch, const Body& body) {
  using A = Acc<T>;
  const int64_t cols = block.col_end - block.col_begin, first_x = kPixels * block.col_begin + offset_x;
  for_each_image(block, (height + kPixels - 1) / kPixels, [&](const TileRows& tiles, int64_t tile) {
    const int64_t rows = tiles.end - tiles.begin, first_y = kPixels * tiles.begin + offset_y;
    const Region region{first_y, first_x, kPixels * (rows - 1) + kSide, kPixels * (cols - 1) + kSide,
                        padded_channels(channels)};
    const T* image = images.data + tiles.image * images.n_stride;
    if (images.c_stride != 1) {
      read_region(images, image, channels, region, scratch);
      for (int64_t t = 0; t < rows * cols; ++t) {
        const A* first = scratch + kPixels * (t / cols * region.width + t % cols) * region.pixel;
        const A* at[kSide * kSide];
        for (int i = 0; i < kSide * kSide; ++i) at[i] = first + (i / kSide * region.width + i % kSide) * region.pixel;
        body(tile + t, at);
      }
      return;
    }
    const T* zeros = reinterpret_cast<const T*>(scratch);
    fill_zero(scratch, channels);
    for (int64_t t = 0; t < rows * cols; ++t) {
      const int64_t y = first_y + kPixels * (t / cols), x = first_x + kPixels * (t % cols);
      const T* at[kSide * kSide];
      for (int i = 0; i < kSide; ++i) {
        const bool inside = y + i >= 0 && y + i < images.height;
        for (int j = 0; j < kSide; ++j) {
          at[i * kSide + j] = inside && x + j >= 0 && x + j < images.width
                                  ? image + (y + i) * images.y_stride + (x + j) * images.x_stride
                                  : zeros;
        }
      }
      body(tile + t, at);
    }
  });
}

// Asks for the pixels of the next tile of channels_last images that are not this one's: `next` elements further.
template <int kPixels, int kSide, typename S>
inline TILEWRIGHT_INLINE void prefetch_tile(const S* const* at, int64_t next, int64_t c) {
#pragma GCC unroll 4
  for (int i = kSide - kPixels; i < kSide; ++i) {
#pragma GCC unroll 4
    for (int j = kSide - kPixels; j < kSide; ++j) prefetch_line(at[i * kSide + j] + next + c);
  }
}

// The transform of tiles whose positions at[i * points + j] are S, a storage type or the accumulator.
template <typename A, int kPixels, int kTaps, typename S>
inline void read_tile(const S* const* at, int64_t next, int64_t channels, A* out, int64_t point_stride) {
  using F = Filtering<kPixels, kTaps>;
  constexpr int kPoints = F::kPoints;
  for_each_vector<A>(channels, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    if (next != 0) prefetch_tile<kPixels, kPoints>(at, next, c);
    transform_both_ways<A, kPoints, kPoints>(
        [](const Vec<A>(&d)[kPoints], Vec<A>(&v)[kPoints]) TILEWRIGHT_INLINE { F::template input<A>(d, v); },
        [&](int i, int j) TILEWRIGHT_INLINE { return load(at[i * kPoints + j] + c, n); },
        [&](int i, int j, Vec<A> v) TILEWRIGHT_INLINE { store(out + (i * kPoints + j) * point_stride + c, v, n); });
  });
}

template <typename T, int kPixels, int kTaps>
void winograd_read_tiles(const ConvImages<const T>& in, const ConvWindow& window, int64_t channels,
                         const WinogradBlock& block, const WinogradMatrices<Acc<T>>& out, Acc<T>* scratch) {
  for_each_tile<kPixels, Filtering<kPixels, kTaps>::kPoints>(
      in, window.height, window.first_y, window.first_x, channels, block, scratch,
      [&](int64_t tile, const auto* const* at) {
        read_tile<Acc<T>, kPixels, kTaps>(at, in.c_stride == 1 ? kPixels * in.x_stride : 0, channels,
                                          out.data + tile * out.row_stride, out.point_stride);
      });
}

// The same of gradients, at[i * kPixels + j] being pixels of dy, to panels.
template <typename A, int kPixels, int kTaps, typename S>
inline void read_gradient_tile(const S* const* at, int64_t next, int64_t filters, A* out, int64_t panel_stride,
                               int64_t point_stride) {
  using F = Filtering<kPixels, kTaps>;
  constexpr int kPoints = F::kPoints;
  for (int64_t f = 0; f < filters; f += kTileCols<A>) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kTileCols<A>; v += kLanes<A>) {
      A* to = out + f / kTileCols<A> * panel_stride + v;
      const int64_t n = larger(0, smaller(filters - f - v, kLanes<A>));
      if (next != 0) prefetch_tile<kPixels, kPixels>(at, next, f + v);
      transform_both_ways<A, kPixels, kPoints>(
          [](const Vec<A>(&dy)[kPixels], Vec<A>(&u)[kPoints]) TILEWRIGHT_INLINE { F::template gradient<A>(dy, u); },
          [&](int i, int j) TILEWRIGHT_INLINE { return load(at[i * kPixels + j] + (n > 0 ? f + v : 0), n); },
          [&](int i, int j, Vec<A> x) TILEWRIGHT_INLINE { store(to + (i * kPoints + j) * point_stride, x); });
    }
  }
}

template <typename T, int kPixels, int kTaps>
void winograd_read_gradients(const ConvImages<const T>& grad, int64_t filters, const WinogradBlock& block,
                             int64_t first_tile, int64_t tiles_in_all, Acc<T>* panels, Acc<T>* scratch) {
  using A = Acc<T>;
  const int64_t panel_stride = tiles_in_all * kTileCols<A>;
  const int64_t point_stride = (filters + kTileCols<A> - 1) / kTileCols<A> * panel_stride;
  for_each_tile<kPixels, kPixels>(
      grad, grad.height, 0, 0, filters, block, scratch, [&](int64_t tile, const auto* const* at) {
        read_gradient_tile<A, kPixels, kTaps>(at, grad.c_stride == 1 ? kPixels * grad.x_stride : 0, filters,
                                              panels + (first_tile + tile) * kTileCols<A>, panel_stride, point_stride);
      });
}

// --- products --------------------------------------------------------------------------------------------------------

template <typename A>
void winograd_multiply(const WinogradProduct<A>& product, int64_t point_begin, int64_t point_end) {
  const int64_t blocks = larger(1, (product.K + product.depth - 1) / product.depth);
  for (int64_t point = point_begin; point < point_end; ++point) {
    const A* left = product.left + point * product.left_point;
    const A* right = product.right + point * product.right_point;
    A* out = product.out + point * product.out_point;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t k = product.K * b / blocks, depth = product.K * (b + 1) / blocks - k;
      for (int64_t f = 0; f < product.N; f += kTileCols<A>) {
        gemm_panels(product.M, smaller(product.N - f, kTileCols<A>), depth, left + k * product.left_col,
                    product.left_row, product.left_col, right + f * product.K + k * kTileCols<A>, out + f,
                    product.out_row, b > 0 || product.accumulate);
      }
    }
  }
}

// --- results ---------------------------------------------------------------------------------------------------------

// One tile's pixels, before the epilogue, for a vector of filters: keep(i, j, pixel).
template <typename A, int kPixels, int kTaps, typename Keep>
inline TILEWRIGHT_INLINE void output_of_tile(const WinogradMatrices<const A>& in, int64_t tile, int64_t f, int64_t n,
                                             const Keep& keep) {
  using F = Filtering<kPixels, kTaps>;
  constexpr int kPoints = F::kPoints;
  const A* from = in.data + tile * in.row_stride + f;
  transform_both_ways<A, kPoints, kPixels>(
      [](const Vec<A>(&m)[kPoints], Vec<A>(&y)[kPixels]) TILEWRIGHT_INLINE { F::template output<A>(m, y); },
      [&](int i, int j) TILEWRIGHT_INLINE { return load(from + (i * kPoints + j) * in.point_stride, n); }, keep);
}

template <typename T, int kPixels, int kTaps>
bool winograd_write_last(const WinogradMatrices<const Acc<T>>& in, const ConvImages<T>& out,
                         const ConvEpilogue<T>& epilogue, int64_t filter_begin, int64_t filter_end,
                         const WinogradBlock& block) {
  using A = Acc<T>;
  const int64_t cols = block.col_end - block.col_begin, filters = filter_end - filter_begin;
  Vec<A> check{};
  for_each_image(block, (out.height + kPixels - 1) / kPixels, [&](const TileRows& tiles, int64_t tile) {
    for (int64_t row = tiles.begin; row < tiles.end; ++row) {
      for (int64_t col = block.col_begin; col < block.col_begin + cols; ++col, ++tile) {
        const int64_t height = smaller(kPixels, out.height - kPixels * row),
                      width = smaller(kPixels, out.width - kPixels * col);
        const int64_t place =
            tiles.image * out.n_stride + kPixels * (row * out.y_stride + col * out.x_stride) + filter_begin;
        for_each_vector<A>(filters, [&](int64_t f, int64_t n) TILEWRIGHT_INLINE {
          const T* next = out.data + place + kPixels * out.x_stride + f;
          for (int i = 0; i < kPixels; ++i) prefetch_lines<kPixels>(next + i * out.y_stride, out.x_stride);
          const Vec<A> bias = epilogue.bias != nullptr ? load(epilogue.bias + filter_begin + f, n) : Vec<A>{};
          output_of_tile<A, kPixels, kTaps>(in, tile, f, n, [&](int i, int j, Vec<A> y) TILEWRIGHT_INLINE {
            if (i >= height || j >= width) return;
            check = fma(y, Vec<A>{}, check);
            const int64_t at = place + i * out.y_stride + j * out.x_stride + f;
            store(out.data + at, finish_vector<T>(epilogue, y + bias, at, n), n);
          });
        });
      }
    }
  });
  return all_finite<A>(check);
}

template <typename T, int kPixels, int kTaps>
bool winograd_write_planes(const WinogradMatrices<const Acc<T>>& in, const ConvImages<T>& out,
                           const ConvEpilogue<T>& epilogue, int64_t filter_begin, int64_t filter_end,
                           const WinogradBlock& block, Acc<T>* scratch) {
  using A = Acc<T>;
  const int64_t cols = block.col_end - block.col_begin, filters = filter_end - filter_begin;
  Vec<A> check{};
  for_each_image(block, (out.height + kPixels - 1) / kPixels, [&](const TileRows& tiles, int64_t tile) {
    const int64_t y = kPixels * tiles.begin, x = kPixels * block.col_begin;
    const Region region{y, x, smaller(out.height, kPixels * tiles.end) - y,
                        smaller(out.width, kPixels * block.col_end) - x, padded_channels(filters)};
    for (int64_t row = 0; row < tiles.end - tiles.begin; ++row) {
      for (int64_t col = 0; col < cols; ++col, ++tile) {
        const int64_t height = smaller(kPixels, region.height - kPixels * row),
                      width = smaller(kPixels, region.width - kPixels * col);
        A* pixels = scratch + kPixels * (row * region.width + col) * region.pixel;
        for_each_vector<A>(filters, [&](int64_t f, int64_t n) TILEWRIGHT_INLINE {
          output_of_tile<A, kPixels, kTaps>(in, tile, f, n, [&](int i, int j, Vec<A> y) TILEWRIGHT_INLINE {
            if (i >= height || j >= width) return;
            check = fma(y, Vec<A>{}, check);
            store(pixels + (i * region.width + j) * region.pixel + f, y);
          });
        });
      }
    }
    write_region(region, scratch, out, tiles.image, epilogue, filter_begin, filters);
  });
  return all_finite<A>(check);
}

template <typename T, int kPixels, int kTaps>
bool winograd_write_tiles(const WinogradMatrices<const Acc<T>>& in, const ConvImages<T>& out,
                          const ConvEpilogue<T>& epilogue, int64_t filter_begin, int64_t filter_end,
                          const WinogradBlock& block, Acc<T>* scratch) {
  if (out.c_stride == 1)
    return winograd_write_last<T, kPixels, kTaps>(in, out, epilogue, filter_begin, filter_end, block);
  return winograd_write_planes<T, kPixels, kTaps>(in, out, epilogue, filter_begin, filter_end, block, scratch);
}

template <typename T, int kPixels, int kTaps>
WinogradTileKernels<T> winograd_tile_kernels() {
  return {winograd_transform_weights<Acc<T>, kPixels, kTaps>,
          winograd_scratch<kPixels, kTaps>,
          winograd_read_tiles<T, kPixels, kTaps>,
          winograd_write_tiles<T, kPixels, kTaps>,
          winograd_read_gradients<T, kPixels, kTaps>,
          winograd_reduce_weights<Acc<T>, kPixels, kTaps>};
}

template <typename T>
void fill_winograd(TypedKernels<T>& table) {
  table.winograd = {winograd_tile_kernels<T, 2, 3>(),
                    winograd_tile_kernels<T, 4, 3>(),
                    winograd_tile_kernels<T, 2, 5>(),
                    winograd_multiply<Acc<T>>,
                    nullptr,
                    nullptr};
}

}  // namespace
}  // namespace tilewright
