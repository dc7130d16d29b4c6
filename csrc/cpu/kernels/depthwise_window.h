// Strips of depthwise convolutions: of square windows without dilation, a strip of a few vectors goes down the image,
// straight from its rows. Every row is loaded once and meets all rows of pixels that it belongs to, whose sums wait in
// registers; of three rows of taps, say:
//
//     stride 1, row of the image    pixels y - 1     y           y + 1
//                 y - 1             weights[1]    weights[0]
//                 y                 weights[2]    weights[1]  weights[0]
//                 y + 1                           weights[2]  weights[1]       <- pixels y are finished
//
// In general row first_y + stride * step + e belongs to pixels step - u by tap row stride * u + e. In the weights'
// gradient rows of dy wait, and every tap has a sum. Nothing is copied, and what lies outside of the image is left out.
// A strip's own lines are a row apart, where no prefetcher follows: those of the next strip are asked for ahead.
#pragma once
#include "cpu/kernels/conv2d_args.h"
#include "cpu/kernels/rows.h"

namespace tilewright {
namespace {

// float64 has no strips: they would make this code a third longer, for gradcheck's sake.
template <typename T>
constexpr bool kHasStrips = sizeof(Acc<T>) == sizeof(float);

// Windows of 3 and 5 of stride 1 and 2, and of 7, where kLargest says so, of stride 1: beyond that few of a row's lanes
// are used, or there are more sums than registers.
template <int kLargest>
inline bool has_strips(const ConvWindow& window) {
  const bool is_compiled = window.cols == 3 || window.cols == 5 || (window.cols == 7 && window.stride_x == 1);
  return is_compiled && window.cols <= kLargest && window.rows == window.cols && window.step_y == 1 &&
         window.step_x == 1 && window.stride_y == window.stride_x && window.stride_x <= 2;
}

// Calls body(side, stride), constants, for a window that has strips.
template <int kLargest, typename Body>
inline void for_strip_window(const ConvWindow& window, const Body& body) {
  if constexpr (kLargest == 7) {
    if (window.cols == 7) return body(Index<7>{}, Index<1>{});
  }
  if (window.cols == 3) return window.stride_x == 1 ? body(Index<3>{}, Index<1>{}) : body(Index<3>{}, Index<2>{});
  window.stride_x == 1 ? body(Index<5>{}, Index<1>{}) : body(Index<5>{}, Index<2>{});
}

// The data gradient of stride 2 by a centred window without dilation: pixel 2 y + i of dx is a sum over rows y + s of
// dy, where s goes from first_shift(i) to last_shift(i), `shifts` in all; columns likewise:
//
//     window of 3   i = 0: s = 0           window of 5   i = 0: s = -1, 0, 1
//                   i = 1: s = 0, 1                      i = 1: s = 0, 1
template <int kSide>
constexpr int first_shift(int i) {
  return -((kSide / 2 - i) / 2);
}
template <int kSide>
constexpr int last_shift(int i) {
  return (kSide / 2 + i) / 2;
}
template <int kSide>
constexpr int shifts(int i) {
  return last_shift<kSide>(i) - first_shift<kSide>(i) + 1;
}

}  // namespace
}  // namespace tilewright
