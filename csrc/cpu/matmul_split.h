// How a product is cut for threads: a pure function of its shape, its path and the ISA's blocks, never of the number of
// threads. Only the stretches touch the bits, and they depend on the shape alone.
#pragma once
#include <algorithm>

#include "cpu/kernels/matmul_args.h"

namespace tilewright {

// Each item's rows and columns in so many parts; or K in stretches, each with a result of its own, and nothing else.
struct MatmulSplit {
  int64_t row_parts = 1, col_parts = 1, stretches = 1;
};

constexpr int64_t kWorthAPart = 1 << 18;  // multiplications: 4 us, waking a thread takes 1 to 3

// K in stretches, where M and N give too few good parts for threads but K is long.
inline int64_t depth_parts(int64_t items, int64_t M, int64_t N, int64_t K) {
  constexpr int64_t kParts = 8, kShortest = 256, kMostPartials = 1 << 20;
  // A thinner part waits for its own copy of B, or for A's rows: 96 x 4096 x 96 in 2 x 2 parts takes 1.2x the time.
  constexpr int64_t kGoodRows = 128, kGoodCols = 64;
  const int64_t good_parts = items * std::max<int64_t>(M / kGoodRows, 1) * std::max<int64_t>(N / kGoodCols, 1);
  // Where sums are few beside what is read, every stretch reads and packs its own share of both operands, once. Not for
  // many rows or columns, which are shared out without partial sums.
  constexpr int64_t kMostEdge = 512;
  const bool few_sums = std::max(M, N) <= kMostEdge && 256 * M * N <= (M + N) * K;
  // Where results are as large as the stretches, writing and adding them costs more than threads bring.
  if (!few_sums && (good_parts >= kParts / 2 || M * N >= kMostPartials || K < 16 * std::max(M, N))) return 1;
  const int64_t wanted = kParts / (few_sums ? items : good_parts);
  return std::max<int64_t>(1, std::min({wanted, M * N * K / kWorthAPart, K / kShortest}));
}

inline MatmulSplit split_rows_and_cols(int64_t items, int64_t M, int64_t N, int64_t K, MatmulPath path,
                                       int64_t block_cols) {
  constexpr int64_t kParts = 16, kDeep = 384;
  const int64_t worthwhile = M * N * std::max<int64_t>(K, 1) / kWorthAPart;
  const int64_t wanted = std::min((kParts + items - 1) / items, worthwhile);
  if (items >= kParts || wanted <= 1) return {};
  // Two high tiles of rows, one wide one of columns; where K is long enough for that, what makes copies worth it.
  const int64_t fewest_rows = K > kDeep && M >= 128 ? 64 : 28, fewest_cols = K > kDeep && N >= 128 ? 64 : 32;
  const int64_t most_rows = std::max<int64_t>(M / fewest_rows, 1);
  if (path != MatmulPath::kTile) {
    const int64_t most_cols = std::max<int64_t>(N / fewest_cols, 1);
    return N >= M ? MatmulSplit{1, std::min(wanted, most_cols)} : MatmulSplit{std::min(wanted, most_rows), 1};
  }
  // Whole column blocks first: a part of the rows packs its own copy of B. Not where C is much of what is moved:
  // threads that write to neighbouring columns take lines from one another. By rows 512 x 16 x 512 takes 0.2x the time,
  // 512 x 384 x 512 0.9x.
  constexpr int64_t kFewRows = 256;
  const bool by_columns = K > kDeep || M < kFewRows;
  const int64_t blocks = by_columns ? std::min(wanted, (N + block_cols - 1) / block_cols) : 1;
  const int64_t rows = std::min((wanted + blocks - 1) / blocks, most_rows);
  // Where rows give enough parts, columns are not made narrow for more: 512 x 512 x 96 in 8 x 2 takes 1.2x the time.
  const int64_t narrowest = rows * blocks >= kParts / 2 ? 128 : fewest_cols;
  return {rows, std::max(blocks, std::min((wanted + rows - 1) / rows, N / narrowest))};
}

// K: all that is summed over. cuts_depth: partial sums can be kept and added.
inline MatmulSplit split_matmul(int64_t items, int64_t M, int64_t N, int64_t K, MatmulPath path, int64_t block_cols,
                                bool cuts_depth) {
  const int64_t stretches = cuts_depth ? depth_parts(items, M, N, K) : 1;
  return stretches > 1 ? MatmulSplit{1, 1, stretches} : split_rows_and_cols(items, M, N, K, path, block_cols);
}

}  // namespace tilewright
