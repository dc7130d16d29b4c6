// Sums over rows (gradients of weights and biases) on several threads, the same for any number of them: rows are cut
// into chunks by the shape alone, each chunk has sums of its own, and those are added in the order of the chunks.
#pragma once
#include <algorithm>

#include "cpu/tensors.h"

namespace tilewright {

// At most 32 chunks: enough to balance any machine's threads, few enough that their partial sums stay small beside the
// input; and of at least 16 rows, so that writing and adding a chunk's sums is little beside summing.
struct RowChunks {
  RowChunks(int64_t all_rows, int64_t cols) : all(all_rows) {
    constexpr int64_t kMaxChunks = 32, kMinElements = 16384, kMinRows = 16;
    rows = std::max({divide_up(kMinElements, std::max<int64_t>(1, cols)), divide_up(all, kMaxChunks), kMinRows});
    count = divide_up(all, rows);
  }
  int64_t begin(int64_t chunk) const { return chunk * rows; }
  int64_t end(int64_t chunk) const { return std::min(all, (chunk + 1) * rows); }

  int64_t all, rows, count;
};

// A gradient [cols] while it is summed: the first chunk adds to the result itself, the others to parts that are added
// to it in order.
template <typename A>
class ChunkSums {
 public:
  ChunkSums(const Tensor& result, int64_t chunks, int64_t cols)
      : result_(mutable_data<A>(result)), chunks_(chunks), cols_(cols) {
    if (result_ != nullptr && chunks > 1) parts_ = uninitialised<A>((chunks - 1) * cols);
  }
  // The sums of a chunk, set to zero; null where the gradient is not wanted.
  A* start(int64_t chunk) {
    if (result_ == nullptr) return nullptr;
    A* sums = chunk == 0 ? result_ : parts_.get() + (chunk - 1) * cols_;
    std::fill_n(sums, cols_, A(0));
    return sums;
  }
  void merge() {
    if (result_ == nullptr) return;
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      const A* part = parts_.get() + (chunk - 1) * cols_;
      for (int64_t c = 0; c < cols_; ++c) result_[c] += part[c];
    }
  }

 private:
  A* result_;
  int64_t chunks_, cols_;
  std::unique_ptr<A[]> parts_;
};

// A summed gradient in its parameter's dtype; none where it was only summed beside another.
inline Tensor finished_gradient(const Tensor& sums, bool wanted, at::ScalarType dtype) {
  if (!wanted) return Tensor();
  return sums.scalar_type() == dtype ? sums : sums.to(dtype);
}

}  // namespace tilewright
