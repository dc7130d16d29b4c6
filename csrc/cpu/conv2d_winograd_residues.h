// Dilated convolutions as plain ones (Winograd's, conv2d_winograd.h): pixels of one residue read pixels of one residue.
//
//     dilation 2, padding 2    result  0 1 2 3 4 5 ...     even pixels read even ones, odd ones odd ones:
//                              reads   0 . 2 . 4           two convolutions of every second pixel
#pragma once
#include "cpu/conv2d_windows.h"

namespace tilewright {

// Pixel step * i + result of one dimension reads step * (i + tap + first) + source; `pixels` of them.
struct DilationResidue {
  int64_t result, source, first, pixels;
};
inline std::vector<DilationResidue> dilation_residues(int64_t pixels, int64_t first, int64_t step) {
  std::vector<DilationResidue> all;
  for (int64_t r = 0; r < std::min(step, pixels); ++r) {
    const int64_t source = ((r + first) % step + step) % step;
    all.push_back({r, source, (r + first - source) / step, divide_up(pixels - r, step)});
  }
  return all;
}

// A window of step 1 and the images that it reads of, or writes to, in place of those of a dilated one.
struct PlainWindow {
  DilationResidue y, x;
  ConvWindow window;
  int64_t step_y, step_x;

  template <typename T>
  ConvImages<T> sources(const ConvImages<T>& images) const {
    return every_nth(images, y.source, x.source, step_y, step_x);
  }
  template <typename T>
  ConvImages<T> results(const ConvImages<T>& images) const {
    return every_nth(images, y.result, x.result, step_y, step_x);
  }
};
// Of stride 1; the first has the most pixels.
inline std::vector<PlainWindow> plain_windows(const ConvWindow& window) {
  std::vector<PlainWindow> all;
  for (const auto& y : dilation_residues(window.height, window.first_y, window.step_y)) {
    for (const auto& x : dilation_residues(window.width, window.first_x, window.step_x)) {
      const ConvWindow plain{y.pixels, x.pixels, 1, 1, window.rows, window.cols, y.first, x.first, 1, 1};
      all.push_back({y, x, plain, window.step_y, window.step_x});
    }
  }
  return all;
}

}  // namespace tilewright
