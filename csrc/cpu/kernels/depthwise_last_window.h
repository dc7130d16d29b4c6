// Depthwise convolution of channels_last images by windows of 3 or 5, in strips (depthwise_window.h) of a few pixels
// and one vector of channels: every position is loaded once and meets all pixels that it belongs to.
#pragma once
#include "cpu/kernels/conv2d.h"
#include "cpu/kernels/depthwise_window.h"

namespace tilewright {
namespace {

constexpr int kLargestLastWindow = 5;  // 7 rows of sums do not fit the registers
constexpr int kStripPixels = 4;  // 3 rows of sums, 9 weights: 21 registers of 32; 16 read some of the weights again

// Positions that a strip reads of a row.
template <int kSide, int kStride>
constexpr int kStripPositions = (kStripPixels - 1) * kStride + kSide;

// The n channels from c on, of `count` pixels from x on.
struct DepthwiseLastStrip {
  int64_t x, count, c, n;
  int64_t next_in, next_out;  // elements to the strip that follows, where positions are read and where pixels lie
};

// Calls body(inside, strip) for strips of kPixels of `width` pixels, which lie x_stride apart and read kPositions of a
// row of `in`, from kStride x + first_x on. inside, a constant: those lie in the image, all pixels and channels are
// there.
template <typename T, int kPixels, int kPositions, int kStride, typename Body>
inline TILEWRIGHT_INLINE void for_each_last_strip(int64_t width, int64_t first_x, const ConvImages<const T>& in,
                                                  int64_t x_stride, int64_t channels, const Body& body) {
  constexpr int64_t kStep = kLanes<Acc<T>>;
  for (int64_t x = 0; x < width; x += kPixels) {
    const int64_t at = x * kStride + first_x, count = smaller(kPixels, width - x);
    const bool columns_inside = at >= 0 && at + kPositions <= in.width;
    for (int64_t c = 0; c < channels; c += kStep) {
      // The next vector of channels; behind the last one, the next pixels' first.
      const bool more = c + kStep < channels;
      const DepthwiseLastStrip strip{x,
                                     count,
                                     c,
                                     smaller(kStep, channels - c),
                                     more ? kStep : kPixels * kStride * in.x_stride - c,
                                     more ? kStep : kPixels * x_stride - c};
      choose(columns_inside && count == kPixels && strip.n == kStep,
             [&](auto inside) TILEWRIGHT_INLINE { body(inside, strip); });
    }
  }
}

// Calls body(which of kPositions, its values) for those of a row that lie in the image, from column first_x on, where
// `from` points. The next strip's lines are asked for ahead, of the first kNew, which the pixels beside do not share.
template <bool kInside, int kPositions, int kNew, typename T, typename Body>
inline TILEWRIGHT_INLINE void for_each_position(const ConvImages<const T>& in, const T* from, int64_t first_x,
                                                const DepthwiseLastStrip& strip, int64_t n, const Body& body) {
  unrolled<kPositions>([&](auto at) TILEWRIGHT_INLINE {
    if (!kInside && (first_x + at < 0 || first_x + at >= in.width)) return;
    const T* position = from + at * in.x_stride;
    if constexpr (decltype(at){} < kNew) prefetch_line(position + strip.next_in);
    body(at, in_register(load(position, n)));
  });
}

// A strip of image n.
template <bool kInside, typename T, int kSide, int kStride>
inline TILEWRIGHT_INLINE void depthwise_last_strip(const ConvDepthwiseArgs<T>& args, const DepthwiseLastStrip& strip,
                                                   int64_t image, int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  constexpr int kWaiting = (kSide - 1) / kStride, kPositions = kStripPositions<kSide, kStride>;
  const ConvImages<const T>& in = args.in;
  const int64_t n = kInside ? kLanes<A> : strip.n, first_x = strip.x * kStride + args.window.first_x;
  const T* first = in.data + image * in.n_stride + first_x * in.x_stride + strip.c;
  const int64_t place = image * args.out.n_stride + strip.x * args.out.x_stride + strip.c;
  Vec<A> weight[kSide * kSide];
  unrolled<kSide * kSide>([&](auto t)
                              TILEWRIGHT_INLINE { weight[t] = load(args.weight + t * args.pitch + strip.c, n); });
  const Vec<A> bias = args.epilogue.bias != nullptr ? load(args.epilogue.bias + strip.c, n) : Vec<A>{};
  Vec<A> sum[kWaiting + 1][kStripPixels];  // the newest first
  unrolled<(kWaiting + 1) * kStripPixels>([&](auto i)
                                              TILEWRIGHT_INLINE { sum[i / kStripPixels][i % kStripPixels] = bias; });
  for (int64_t step = row_begin; step < row_end + kWaiting; ++step) {
    unrolled<kStride>([&](auto e) TILEWRIGHT_INLINE {
      const int64_t row = args.window.first_y + kStride * step + e;
      if (row < 0 || row >= in.height) return;
      const T* from = first + row * in.y_stride;
      for_each_position<kInside, kPositions, kStripPixels * kStride>(
          in, from, first_x, strip, n, [&](auto at, Vec<A> value) TILEWRIGHT_INLINE {
            unrolled<kWaiting + 1>([&](auto u) TILEWRIGHT_INLINE {
              constexpr int kRow = kStride * decltype(u){} + decltype(e){};
              unrolled<kStripPixels>([&](auto p) TILEWRIGHT_INLINE {
                constexpr int kCol = decltype(at){} - kStride * decltype(p){};
                if constexpr (kRow < kSide && kCol >= 0 && kCol < kSide) {
                  sum[u][p] = fma(value, weight[kRow * kSide + kCol], sum[u][p]);
                }
              });
            });
          });
    });
    const int64_t y = step - kWaiting;
    unrolled<kStripPixels>([&](auto p) TILEWRIGHT_INLINE {
      if (y >= row_begin && (kInside || p < strip.count)) {
        const int64_t offset = place + y * args.out.y_stride + p * args.out.x_stride;
        prefetch_line(args.out.data + offset + strip.next_out);
        store(args.out.data + offset, finish_vector<T>(args.epilogue, sum[kWaiting][p], offset, n), n);
      }
      unrolled<kWaiting>([&](auto u) TILEWRIGHT_INLINE { sum[kWaiting - u][p] = sum[kWaiting - 1 - u][p]; });
      sum[0][p] = bias;
    });
  }
}

// Rows [row_begin, row_end) of image n.
template <typename T, int kSide, int kStride>
void depthwise_last_window(const ConvDepthwiseArgs<T>& args, int64_t n, int64_t row_begin, int64_t row_end) {
  for_each_last_strip<T, kStripPixels, kStripPositions<kSide, kStride>, kStride>(
      args.window.width, args.window.first_x, args.in, args.out.x_stride, args.channels,
      [&](auto inside, const DepthwiseLastStrip& strip) TILEWRIGHT_INLINE {
        depthwise_last_strip<inside.value, T, kSide, kStride>(args, strip, n, row_begin, row_end);
      });
}

}  // namespace
}  // namespace tilewright
