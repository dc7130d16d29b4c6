// Patches of planes and weights of a convolution, copied (and widened) into what the matrix product reads.
//
//   pack_patch_columns   patches[k][pixel]      runs of a row, k = (channel, tap)
//   pack_weights         [panel][k][kTileCols]  filters across a panel
// Positions outside the image become zeros here, so nothing after it knows of padding, stride or dilation.
#pragma once
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/rows.h"

namespace tilewright {
namespace {

template <typename A>
inline void fill_zero(A* dst, int64_t n) {
  for_each_vector<A>(n, [=](int64_t i, int64_t width) TILEWRIGHT_INLINE { store(dst + i, Vec<A>{}, width); });
}

template <typename T>
inline void copy_run(Acc<T>* dst, const T* src, int64_t n) {
  for_each_vector<Acc<T>>(
      n, [=](int64_t i, int64_t width) TILEWRIGHT_INLINE { store(dst + i, load(src + i, width), width); });
}

// Calls body(offset of the first pixel in the images, first pixel in the block, pixels) for every piece of one row.
template <typename T, typename Body>
inline void for_each_pixel_run(const ConvImages<T>& images, const ConvWindow& window, int64_t pixel, int64_t count,
                               const Body& body) {
  int64_t x = pixel % window.width, y = pixel / window.width % window.height;
  int64_t n = pixel / (window.width * window.height);
  for (int64_t at = 0; at < count;) {
    const int64_t length = smaller(window.width - x, count - at);
    body(n * images.n_stride + y * images.y_stride + x * images.x_stride, at, length);
    at += length;
    x = 0;
    if (++y == window.height) {
      y = 0;
      ++n;
    }
  }
}

// Neighbouring pixels of one row of the output.
template <typename T>
struct PixelRun {
  const T* image;
  int64_t y, x;  // position read by tap (0, 0) of the first pixel
  int64_t at, count;
};

// Cuts pixels [pixel, pixel + count) into runs; returns how many there are (at most count).
template <typename T>
inline int64_t find_runs(const ConvImages<const T>& in, const ConvWindow& window, int64_t pixel, int64_t count,
                         PixelRun<T>* runs) {
  int64_t x = pixel % window.width, y = pixel / window.width % window.height;
  int64_t n = pixel / (window.width * window.height), found = 0;
  for (int64_t at = 0; at < count; ++found) {
    const int64_t length = smaller(window.width - x, count - at);
    runs[found] = {in.data + n * in.n_stride, y * window.stride_y + window.first_y,
                   x * window.stride_x + window.first_x, at, length};
    at += length;
    x = 0;
    if (++y == window.height) {
      y = 0;
      ++n;
    }
  }
  return found;
}

// Lanes 0, 2, 4 ... of two vectors in a row.
template <typename A>
inline Vec<A> even_lanes(Vec<A> low, Vec<A> high) {
  using Index = decltype(Vec<A>{} == Vec<A>{});
  Index even;
  for (int lane = 0; lane < kLanes<A>; ++lane) even[lane] = 2 * lane;
  return __builtin_shuffle(low, high, even);
}

// The even elements of 2n - 1 consecutive ones.
template <typename A>
inline Vec<A> load_even(const A* p, int64_t n) {
  constexpr int64_t kStep = kLanes<A>;
  const int64_t length = 2 * n - 1;
  const Vec<A> low = length >= kStep ? load(p) : load(p, length);
  return even_lanes<A>(low, length > kStep ? load(p + kStep, length - kStep) : Vec<A>{});
}

// Every fourth of 4n - 3: the even ones of the even ones.
template <typename A>
inline Vec<A> load_every_fourth(const A* p, int64_t n) {
  constexpr int64_t kStep = kLanes<A>;
  const int64_t evens = 2 * n - 1;
  const Vec<A> low = load_even(p, smaller(evens, kStep));
  return even_lanes<A>(low, evens > kStep ? load_even(p + 2 * kStep, evens - kStep) : Vec<A>{});
}

// dst[j] = src[j * stride] for j < n.
template <typename T>
inline void copy_strided(Acc<T>* dst, const T* src, int64_t stride, int64_t n) {
  using A = Acc<T>;
  if (stride == 1) return copy_run(dst, src, n);
  if constexpr (sizeof(T) == sizeof(A)) {
    if (stride == 2) {
      return for_each_vector<A>(
          n, [=](int64_t j, int64_t width) TILEWRIGHT_INLINE { store(dst + j, load_even(src + 2 * j, width), width); });
    }
    if (stride == 4) {
      return for_each_vector<A>(n, [=](int64_t j, int64_t width) TILEWRIGHT_INLINE {
        store(dst + j, load_every_fourth(src + 4 * j, width), width);
      });
    }
    for (int64_t j = 0; j < n; ++j) dst[j] = src[j * stride];
  } else {
    for (int64_t j = 0; j < n; ++j) dst[j] = load(src + j * stride, 1)[0];
  }
}

// Patches of `count` <= `width` pixels, k in [k_begin, k_end), k = (channel, tap row, tap column); the columns behind
// count are zeros.
template <typename T>
void pack_patch_columns(const ConvImages<const T>& in, const ConvWindow& window, int64_t pixel, int64_t count,
                        int64_t width, int64_t k_begin, int64_t k_end, Acc<T>* dst, int64_t dst_row) {
  PixelRun<T> runs[kConvGradPixels];
  const int64_t run_count = find_runs(in, window, pixel, count, runs);
  const int64_t taps = window.rows * window.cols, stride = window.stride_x;
  int64_t c = taps > 0 ? k_begin / taps : 0, row = taps > 0 ? k_begin % taps / window.cols : 0;
  int64_t col = taps > 0 ? k_begin % window.cols : 0;
  for (int64_t k = k_begin; k < k_end; ++k, dst += dst_row) {
    for (int64_t r = 0; r < run_count; ++r) {
      const PixelRun<T>& run = runs[r];
      const int64_t iy = run.y + row * window.step_y, ix = run.x + col * window.step_x;
      int64_t low = 0, high = run.count;
      if (iy < 0 || iy >= in.height) high = 0;
      if (ix < 0) low = smaller((-ix + stride - 1) / stride, run.count);
      if (ix + (run.count - 1) * stride >= in.width) {
        high = smaller(high, larger(0, (in.width - ix + stride - 1) / stride));
      }
      if (low > 0 || high < run.count) fill_zero(dst + run.at, run.count);
      if (low >= high) continue;
      const T* src = run.image + c * in.c_stride + iy * in.y_stride + (ix + low * stride) * in.x_stride;
      copy_strided(dst + run.at + low, src, stride * in.x_stride, high - low);
    }
    if (count < width) fill_zero(dst + count, width - count);
    if (++col == window.cols) {
      col = 0;
      if (++row == window.rows) {
        row = 0;
        ++c;
      }
    }
  }
}

// The same for all panels of a block of `count` pixels that lie side by side in every plane and are read by one tap: a
// plane's stretch is read front to back before the next plane's.
template <typename T>
void pack_point_columns(const T* src, int64_t c_stride, int64_t count, int64_t k_count, Acc<T>* panels) {
  constexpr int64_t kWidth = kTileCols<Acc<T>>;
  for (int64_t k = 0; k < k_count; ++k) {
    for (int64_t p = 0; p < count; p += kWidth) {
      pack_rows(1, smaller(kWidth, count - p), src + k * c_stride + p, 0, panels + p * k_count + k * kWidth);
    }
  }
}

// Calls keep(k, the weights of filters f .. f + kLanes - 1) for every k, zeros behind the last filter: a block of a run
// is transposed in registers and its rows are those of their k.
template <typename T, typename Keep>
inline void for_each_weight_row(const ConvWeights<const T>& weights, int64_t f, const Keep& keep) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  const int64_t lanes = smaller(larger(weights.filters - f, 0), kStep);
  for (int64_t r = 0; r < weights.runs; ++r) {
    const T* run = weights.data + f * weights.filter_stride + r * weights.run_stride;
    const int64_t first = r * weights.run_step;
    if (weights.element_stride != 1) {  // filters are neighbours
      for (int64_t e = 0; e < weights.run_length; ++e) {
        const int64_t k = weights.row_of[e];
        if (k >= 0) keep(first + k, lanes > 0 ? load(run + e * weights.element_stride, lanes) : Vec<A>{});
      }
      continue;
    }
    for (int64_t e = 0; e < weights.run_length; e += kStep) {
      const int64_t width = smaller(weights.run_length - e, kStep);
      Vec<A> block[kLanes<A>];
      for (int64_t j = 0; j < kStep; ++j) {
        block[j] = j < lanes ? load(run + j * weights.filter_stride + e, width) : Vec<A>{};
      }
      transpose<A>(block);
      for (int64_t i = 0; i < width; ++i) {
        const int64_t k = weights.row_of[e + i];
        if (k >= 0) keep(first + k, block[i]);
      }
    }
  }
}

// One vector of filters, f and on, to a column of a panel whose rows are dst_row apart.
template <typename T>
void pack_filters(const ConvWeights<const T>& weights, int64_t f, Acc<T>* dst, int64_t dst_row) {
  for_each_weight_row(weights, f,
                      [=](int64_t k, Vec<Acc<T>> values) TILEWRIGHT_INLINE { store(dst + k * dst_row, values); });
}

// dst[j * dst_row + i] = src[i * src_row + j]: images of one format to the other. In stretches of 64 columns, so that
// whole lines are read of rows that lie in as many pages; the lines of both sides that come kAhead rows, or a stretch,
// later are asked for: more streams than a processor follows by itself (this loop alone on Zen 4: 19 -> 27 GB/s to
// channels_last, 15 -> 24 GB/s to planes; memcpy 27 GB/s). Those may lie outside of the images: nothing is read.
template <typename T>
void transpose_matrix(int64_t rows, int64_t cols, const T* src, int64_t src_row, T* dst, int64_t dst_row) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>, kStretch = 64, kFew = 4, kAhead = 2 * kStep;
  if (rows <= kFew || cols <= kFew) {  // a block would be mostly empty (images of one to three channels: 1.5x the time)
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t i = 0; i < rows; ++i) dst[j * dst_row + i] = src[i * src_row + j];
    }
    return;
  }
  for (int64_t first = 0; first < cols; first += kStretch) {
    for (int64_t i = 0; i < rows; i += kStep) {
      const int64_t height = smaller(rows - i, kStep);
      for (int64_t j = first; j < smaller(cols, first + kStretch); j += kStep) {
        const int64_t width = smaller(cols - j, kStep);
        const bool here = i + kAhead < rows;
        const int64_t next_i = here ? i + kAhead : i + kAhead - rows, next_j = here ? j : j + kStretch;
        prefetch_lines<kStep>(src + next_i * src_row + next_j, src_row);
        prefetch_lines<kStep>(dst + next_j * dst_row + next_i, dst_row);
        Vec<A> block[kLanes<A>];
        for (int64_t r = 0; r < kStep; ++r) {
          block[r] = r < height ? load(src + (i + r) * src_row + j, width) : Vec<A>{};
        }
        transpose<A>(block);
        for (int64_t c = 0; c < width; ++c) store(dst + (j + c) * dst_row + i, block[c], height);
      }
    }
  }
}

// Weights to panels of kTileCols filters.
template <typename T>
void pack_weights(const ConvWeights<const T>& weights, int64_t K, int64_t panel_begin, int64_t panel_end,
                  Acc<T>* packed) {
  constexpr int64_t kPanel = kTileCols<Acc<T>>, kStep = kLanes<Acc<T>>;
  for (int64_t f = panel_begin * kPanel; f < panel_end * kPanel; f += kStep) {
    pack_filters(weights, f, packed + f / kPanel * kPanel * K + f % kPanel, kPanel);
  }
}

// The reverse, for the weights' gradient: the chunks' sums [chunk][k][sums_stride], added in order, to weights. Rows of
// sums lie in as many pages: all their filters of the range are read at once.
template <typename T>
void unpack_weights(const ConvWeights<T>& weights, int64_t K, const Acc<T>* sums, int64_t sums_stride, int64_t chunks,
                    int64_t filter_begin, int64_t filter_end) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  for (int64_t e = 0; e < weights.run_length; e += kStep) {
    const int64_t width = smaller(weights.run_length - e, kStep);
    for (int64_t f = filter_begin; f < filter_end; f += kStep) {
      const int64_t lanes = smaller(filter_end - f, kStep);
      Vec<A> block[kLanes<A>];
      for (int64_t i = 0; i < kStep; ++i) {
        block[i] = Vec<A>{};
        if (i >= width) continue;
        const A* from = sums + weights.row_of[e + i] * sums_stride + f;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) block[i] += load(from + chunk * K * sums_stride, lanes);
      }
      transpose<A>(block);
      for (int64_t j = 0; j < lanes; ++j) store(weights.data + (f + j) * weights.filter_stride + e, block[j], width);
    }
  }
}

}  // namespace
}  // namespace tilewright
