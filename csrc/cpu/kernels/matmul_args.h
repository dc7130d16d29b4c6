// What cpu/product.cpp hands to kernels/matmul.h.
#pragma once
#include "common/macros.h"
#include "common/types.h"
#include "cpu/kernels/activation_args.h"

namespace tilewright {

// An odometer over the dimensions that are not part of one product: step[d] is by how many elements each operand moves
// when dimension d advances. A step of 0 is an expanded operand.
struct MatmulWalk {
  static constexpr int kMaxDims = 64;  // torch's own limit
  struct Step {
    int64_t a, b, c, addend;
  };
  int dims = 0;
  int64_t sizes[kMaxDims];
  Step steps[kMaxDims];

  // Offsets of the item with the given number, dimension 0 outermost. Inlined always: an ISA unit exports nothing else.
  TILEWRIGHT_INLINE Step at(int64_t item) const {
    Step offset{0, 0, 0, 0};
    for (int d = dims - 1; d >= 0; --d) {
      const int64_t position = d == 0 ? item : item % sizes[d];
      item = d == 0 ? 0 : item / sizes[d];
      offset.a += position * steps[d].a;
      offset.b += position * steps[d].b;
      offset.c += position * steps[d].c;
      offset.addend += position * steps[d].addend;
    }
    return offset;
  }
};

// How one product is computed. Chosen from the shape and the strides of the whole product, never from a part of it, so
// that the bits do not depend on how the work was cut.
enum class MatmulPath {
  kTile,    // packed right operand, register tiles
  kDot,     // few rows or few columns, both operands contiguous along K: dot products
  kStream,  // few rows, right operand with contiguous rows: right is read once, in place
  kOuter,   // few rows and columns over a long K, both operands contiguous across it: both read in place
};

// Blocks of the tile path, in elements (of which one holds `values` along K); each ISA's are in its
// isa/gemm_tile_<isa>.h; kernel_table.cpp fits those of AVX-512 to a larger L1.
struct MatmulBlocks {
  // K is cut into equal blocks of at most `depth`, but not at all up to `whole_depth`. A left tile of them lies in L1.
  int64_t depth, whole_depth;
  int64_t right;  // a right block has at most so many elements: half of L2 or somewhat more
  // Rows that one sweep over the right blocks covers where accumulators cannot wait in the output (16-bit types).
  int64_t sweep_rows;
  int64_t values = 1;
  int64_t step = 1;  // operands hold a multiple of so many elements along K, zeros behind what is there

  TILEWRIGHT_INLINE constexpr int64_t round_up(int64_t elements) const { return (elements + step - 1) / step * step; }
  TILEWRIGHT_INLINE constexpr int64_t elements(int64_t K) const { return round_up((K + values - 1) / values); }
  // Blocks of K values.
  TILEWRIGHT_INLINE constexpr int64_t count(int64_t K) const {
    return elements(K) <= whole_depth ? 1 : (elements(K) + depth - 1) / depth;
  }
  // Elements of the longest block.
  TILEWRIGHT_INLINE constexpr int64_t block_depth(int64_t K) const {
    return round_up((elements(K) + count(K) - 1) / count(K));
  }
  // Columns of a right block at most, a multiple of every panel.
  TILEWRIGHT_INLINE constexpr int64_t block_cols(int64_t K) const {
    return right / (K > 0 ? block_depth(K) : 1) / 32 * 32;
  }
};

// Most rows of the stream path.
constexpr int64_t kMatmulStreamRows = 8;
// Most bytes that the outer path reads for one k, and the shortest K: packing pays for more (64 and 256 columns of
// float32: 0.95x by tiles, 0.91x in place; 32 and 16: 0.79x and 1.19x, 64 and 64: 0.90x and 1.02x of native).
constexpr int64_t kMatmulOuterBytes = 1024, kMatmulOuterDepth = 1024;
// Its blocks of K: C is read and written once for so many products (2 to 6 % slower with 48, and with 256).
constexpr int64_t kMatmulOuterBlock = 128;

// C[M, N] = act(alpha * sum over reduce items of A[M, K] * B[K, N] + beta * addend), for every item of the batch.
template <typename T>
struct MatmulArgs {
  int64_t M, N, K;
  const T* a;
  int64_t a_row, a_col;
  const T* b;
  int64_t b_row, b_col;
  T* c;  // rows contiguous
  int64_t c_row;
  const T* addend;  // or null
  int64_t addend_row, addend_col;
  Acc<T> alpha, beta;
  Activation activation;
  T* pre;                // what the activation is applied to, laid out like c; or null
  Acc<T>* left_sums;     // [M], added to: sums of A's rows over K; or null. See can_sum_left
  int64_t reduce_count;  // 1 where there is nothing to sum over but K
  MatmulWalk batch, reduce;
  MatmulPath path;
  MatmulBlocks blocks;  // of the kernels in use
};

// Sums of A's rows come for nothing where each of its tiles is copied, and lies transposed in L1.
template <typename T>
bool can_sum_left(const MatmulArgs<T>& args) {
  return args.path == MatmulPath::kTile && args.a_row == 1 && args.a_col != 1;
}

// The part of one item that one call computes.
struct MatmulPart {
  int64_t item, row_begin, row_end, col_begin, col_end;
};

template <typename T>
struct MatmulKernels {
  MatmulBlocks blocks;
  // scratch: matmul_scratch_elements() accumulators, aligned to 64 bytes.
  void (*product)(const MatmulArgs<T>&, const MatmulPart&, Acc<T>* scratch);
  // Whole items [begin, end).
  void (*products)(const MatmulArgs<T>&, int64_t begin, int64_t end, Acc<T>* scratch);
  // C's rows [begin, end) of all items in a row, from `parts` partial sums of each item, [item][part][M][N], which are
  // added in order and lost.
  void (*add_partials)(const MatmulArgs<T>&, Acc<T>* partials, int64_t parts, int64_t begin, int64_t end);
};

// Scratch of a part: the packed right block, left tiles of 64 rows, accumulators of a sweep; see kernels/matmul.h.
template <typename T>
int64_t matmul_scratch_elements(const MatmulArgs<T>& args, int64_t rows, int64_t cols) {
  using A = Acc<T>;
  const MatmulBlocks& blocks = args.blocks;
  const int64_t widest = blocks.block_cols(args.K), block_cols = (cols < widest ? cols : widest) + 64;
  const int64_t depth = blocks.block_depth(args.K);
  switch (args.path) {
    case MatmulPath::kTile: {
      // Between blocks of K the accumulators of a sweep wait; else those of one row tile are enough.
      constexpr int64_t kTile = 32;
      const int64_t waiting = args.reduce_count * blocks.count(args.K) > 1 ? blocks.sweep_rows : kTile;
      const int64_t sweep = sizeof(T) == sizeof(A) ? 0 : rows < waiting ? rows : waiting;
      return depth * (block_cols + 64) + sweep * block_cols + 64;
    }
    case MatmulPath::kDot:
      return rows * cols + 16 + (args.b_row == 1 ? 0 : args.K * cols) + (args.a_col == 1 ? 0 : args.K * rows);
    case MatmulPath::kOuter:
      return kMatmulOuterBlock * 32;  // one panel
    default:
      return 64 * (16 + kMatmulStreamRows) + rows * cols;
  }
}

}  // namespace tilewright
