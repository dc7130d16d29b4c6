#include "cpu/product.h"

#include "cpu/kernel_table.h"
#include "cpu/matmul_split.h"
#include "cpu/scratch.h"
#include "cpu/tensors.h"

namespace tilewright {
namespace {

// So many multiplications count as one element read, where work is shared out to threads.
constexpr int64_t kMultiplicationsARead = 8;

// A batch dimension that has not been folded away yet.
struct BatchDim {
  int64_t size, a, b, c, addend;
};
using BatchDims = c10::SmallVector<BatchDim, 4>;

// Drops dimensions of size 1 and joins neighbours that every operand steps through evenly.
BatchDims collapsed(const Product& product, bool reduced) {
  BatchDims dims;
  const auto step = [](const MatrixOperand& operand, size_t d) {
    return operand.data == nullptr || operand.batch.empty() ? 0 : operand.batch[d];
  };
  for (size_t d = 0; d < product.batch_sizes.size(); ++d) {
    const int64_t size = product.batch_sizes[d];
    if (product.is_reduced[d] != reduced || size == 1) continue;
    const BatchDim dim{size, step(product.a, d), step(product.b, d), step(product.c, d), step(product.addend, d)};
    if (!dims.empty()) {
      BatchDim& outer = dims.back();
      if (outer.a == dim.a * size && outer.b == dim.b * size && outer.c == dim.c * size &&
          outer.addend == dim.addend * size) {
        outer = {outer.size * size, dim.a, dim.b, dim.c, dim.addend};
        continue;
      }
    }
    dims.push_back(dim);
  }
  return dims;
}

// Innermost batch dimensions over which B does not change become rows: N-D x 2-D is one product.
void fold_into_rows(Product& p, BatchDims& batch) {
  while (!batch.empty()) {
    const BatchDim& dim = batch.back();
    const bool adjoining = dim.a == p.M * p.a.row && dim.c == p.M * p.c.row &&
                           (p.addend.data == nullptr || dim.addend == p.M * p.addend.row);
    if (dim.b != 0 || (p.M != 1 && !adjoining)) return;
    if (p.M == 1) {
      p.a.row = dim.a;
      p.c.row = dim.c;
      p.addend.row = dim.addend;
    }
    p.M *= dim.size;
    batch.pop_back();
  }
}

void fold_into_depth(Product& p, BatchDims& reduce) {
  while (!reduce.empty()) {
    const BatchDim& dim = reduce.back();
    if (p.K != 1 && !(dim.a == p.K * p.a.col && dim.b == p.K * p.b.row)) return;
    if (p.K == 1) {
      p.a.col = dim.a;
      p.b.row = dim.b;
    }
    p.K *= dim.size;
    reduce.pop_back();
  }
}

// One column is computed as one row: C^T = B^T A^T.
void turn_column_into_row(Product& p, BatchDims& batch, BatchDims& reduce) {
  if (p.N != 1 || p.M == 1 || p.c.row != 1) return;
  std::swap(p.M, p.N);
  p.left_sums = nullptr;
  const MatrixOperand left = transposed(p.b), right = transposed(p.a);
  p.a = left;
  p.b = right;
  p.addend = transposed(p.addend);
  p.c.row = p.N;
  for (BatchDims* dims : {&batch, &reduce}) {
    for (BatchDim& dim : *dims) std::swap(dim.a, dim.b);
  }
}

// T: of the operands. `values`: how many along K an element of the tiles holds (MatmulBlocks).
template <typename T>
MatmulPath choose_path(const Product& p, int64_t values) {
  const bool left_along_depth = p.a.col == 1 || p.K == 1, right_along_depth = p.b.row == 1;
  if (p.N == 1 && p.M == 1) return MatmulPath::kDot;
  // Tiles that multiply pairs do twice the work of a stream, which widens: with 3 rows that outweighs packing B.
  constexpr int64_t kStreamRowsOfPairs = 2;
  if (p.M <= (values == 1 ? kMatmulStreamRows : kStreamRowsOfPairs) && p.b.col == 1) return MatmulPath::kStream;
  // Dot products pay for sums across lanes with every result, tiles for transposing an operand with every K: as
  // measured, 32 (rows) and 16 (columns) of K a row or column are even. 512 x 16x32x32 takes 0.3x the time by tiles, 64
  // x 2x256x128 0.5x by dot products.
  const int64_t elements = p.K / values;
  const int64_t most_rows = std::clamp<int64_t>(elements / 32, 1, left_along_depth ? 16 : 4);
  const int64_t most_cols = std::clamp<int64_t>(elements / 16, 1, right_along_depth ? 8 : 4);
  if (right_along_depth && p.M <= most_rows) return MatmulPath::kDot;
  if (left_along_depth && p.N <= most_cols && (right_along_depth || p.M > 16)) return MatmulPath::kDot;
  if (std::is_same_v<T, Acc<T>> && p.a.row == 1 && p.b.col == 1 && p.K >= kMatmulOuterDepth &&
      (p.M + p.N) * static_cast<int64_t>(sizeof(T)) <= kMatmulOuterBytes) {
    return MatmulPath::kOuter;
  }
  return MatmulPath::kTile;
}

void fill_walk(MatmulWalk& walk, const BatchDims& dims) {
  walk.dims = static_cast<int>(dims.size());
  for (size_t d = 0; d < dims.size(); ++d) {
    walk.sizes[d] = dims[d].size;
    walk.steps[d] = {dims[d].a, dims[d].b, dims[d].c, dims[d].addend};
  }
}

int64_t count_items(const BatchDims& dims) {
  int64_t count = 1;
  for (const BatchDim& dim : dims) count *= dim.size;
  return count;
}

template <typename T>
void fill_args(MatmulArgs<T>& args, const Product& p, const BatchDims& batch, const BatchDims& reduce) {
  args.M = p.M;
  args.N = p.N;
  args.K = p.K;
  args.a = static_cast<const T*>(p.a.data);
  args.a_row = p.a.row;
  args.a_col = p.K == 1 ? 1 : p.a.col;
  args.b = static_cast<const T*>(p.b.data);
  args.b_row = p.b.row;
  args.b_col = p.N == 1 ? 1 : p.b.col;
  args.c = static_cast<T*>(const_cast<void*>(p.c.data));
  args.c_row = p.c.row;
  args.addend = static_cast<const T*>(p.addend.data);
  args.addend_row = p.addend.row;
  args.addend_col = p.addend.col;
  args.alpha = static_cast<Acc<T>>(p.alpha);
  args.beta = static_cast<Acc<T>>(p.beta);
  args.activation = p.activation;
  args.pre = static_cast<T*>(p.pre);
  args.reduce_count = count_items(reduce);
  fill_walk(args.batch, batch);
  fill_walk(args.reduce, reduce);
  args.blocks = kernels<T>().matmul.blocks;
  args.path = choose_path<T>(p, args.blocks.values);
  args.left_sums = batch.empty() && can_sum_left(args) ? static_cast<Acc<T>*>(p.left_sums) : nullptr;
}

int64_t part_edge(int64_t size, int64_t parts, int64_t part, int64_t unit) {
  return part == parts ? size : size * part / parts / unit * unit;
}

template <typename T>
Acc<T>* scratch_for(const MatmulArgs<T>& args, int64_t rows, int64_t cols) {
  constexpr int kSlot = 0;
  return static_cast<Acc<T>*>(thread_scratch(kSlot, matmul_scratch_elements(args, rows, cols) * sizeof(Acc<T>)));
}

// Each stretch of K gives a partial sum; those of one item are then added in order, whoever computed them.
template <typename T>
void run_in_depth(const MatmulArgs<T>& args, int64_t items, int64_t parts) {
  const int64_t size = args.M * args.N;
  const auto partials = uninitialised<T>(items * parts * size);
  const int64_t sums_size = args.left_sums != nullptr ? args.M : 0;
  const auto left_sums = std::make_unique<T[]>(static_cast<size_t>(parts * sums_size));
  const auto kernel = kernels<T>().matmul;
  parallel_for_cost(items * parts, 32 + size * args.K / parts / kMultiplicationsARead, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t part = unit % parts, first = args.K * part / parts;
      const MatmulWalk::Step at = args.batch.at(unit / parts);
      MatmulArgs<T> stretch = args;
      stretch.a += at.a + first * args.a_col;
      stretch.b += at.b + first * args.b_row;
      stretch.K = args.K * (part + 1) / parts - first;
      stretch.c = partials.get() + unit * size;
      stretch.c_row = args.N;
      stretch.alpha = 1;
      stretch.addend = nullptr;
      stretch.activation = Activation::kNone;
      stretch.pre = nullptr;
      stretch.left_sums = sums_size > 0 ? left_sums.get() + part * sums_size : nullptr;
      stretch.batch.dims = 0;
      kernel.product(stretch, {0, 0, args.M, 0, args.N}, scratch_for(stretch, args.M, args.N));
    }
  });
  parallel_for_cost(items * args.M, args.N * parts,
                    [&](int64_t begin, int64_t end) { kernel.add_partials(args, partials.get(), parts, begin, end); });
  for (int64_t i = 0; i < parts * sums_size; ++i) args.left_sums[i % sums_size] += left_sums[i];
}

template <typename T>
void run_typed(const MatmulArgs<T>& args, int64_t items) {
  const auto& kernel = kernels<T>().matmul;
  const int64_t depth = args.K * args.reduce_count;
  constexpr bool kKeepsPartials = std::is_same_v<T, Acc<T>>;  // those of 16-bit types would be rounded
  const MatmulSplit split = split_matmul(items, args.M, args.N, depth, args.path, args.blocks.block_cols(args.K),
                                         kKeepsPartials && args.reduce_count == 1);
  if constexpr (kKeepsPartials) {
    if (split.stretches > 1) return run_in_depth(args, items, split.stretches);
  }
  const int64_t parts = split.row_parts * split.col_parts;
  // An item costs some even where there is little to do.
  const int64_t cost = 32 + args.M * args.N * depth / parts / kMultiplicationsARead;
  if (parts == 1) {
    parallel_for_cost(items, cost, [&](int64_t begin, int64_t end) {
      kernel.products(args, begin, end, scratch_for(args, args.M, args.N));
    });
    return;
  }
  parallel_for_cost(items * parts, cost, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      // Row parts of one column part that this thread holds are computed as one: B is packed once for them.
      const int64_t row_part = begin % split.row_parts, above = begin / split.row_parts;
      const int64_t taken = std::min(end - begin, split.row_parts - row_part);
      const int64_t col_part = above % split.col_parts;
      const MatmulPart part{above / split.col_parts, part_edge(args.M, split.row_parts, row_part, 1),
                            part_edge(args.M, split.row_parts, row_part + taken, 1),
                            part_edge(args.N, split.col_parts, col_part, 32),
                            part_edge(args.N, split.col_parts, col_part + 1, 32)};
      kernel.product(args, part, scratch_for(args, part.row_end - part.row_begin, part.col_end - part.col_begin));
      begin += taken;
    }
  });
}

MatrixOperand operand_of(const Tensor& tensor, size_t batch_dims) {
  MatrixOperand operand;
  operand.data = tensor.const_data_ptr();
  operand.batch.resize(batch_dims, 0);
  const auto own = static_cast<size_t>(std::max<int64_t>(tensor.dim() - 2, 0));
  for (size_t d = 0; d < own; ++d) {
    if (tensor.size(d) != 1) operand.batch[batch_dims - own + d] = tensor.stride(d);
  }
  if (tensor.dim() >= 2) {
    operand.row = tensor.stride(-2);
    operand.col = tensor.stride(-1);
  }
  return operand;
}

}  // namespace

MatrixOperand left_operand(const Tensor& tensor, size_t batch_dims) {
  MatrixOperand operand = operand_of(tensor, batch_dims);
  if (tensor.dim() == 1) operand.col = tensor.stride(0);
  return operand;
}

MatrixOperand right_operand(const Tensor& tensor, size_t batch_dims) {
  MatrixOperand operand = operand_of(tensor, batch_dims);
  if (tensor.dim() == 1) operand.row = tensor.stride(0);
  return operand;
}

MatrixOperand transposed(const MatrixOperand& operand) {
  MatrixOperand result = operand;
  std::swap(result.row, result.col);
  return result;
}

bool run_product(const Product& product, at::ScalarType dtype, const char* op) {
  Product p = product;
  BatchDims batch = collapsed(p, /*reduced=*/false), reduce = collapsed(p, /*reduced=*/true);
  fold_into_rows(p, batch);
  fold_into_depth(p, reduce);
  turn_column_into_row(p, batch, reduce);
  if (count_items(reduce) == 0) {  // a sum over nothing
    reduce.clear();
    p.K = 0;
  }
  const int64_t items = count_items(batch);
  if (items == 0 || p.M == 0 || p.N == 0) return false;
  bool sums_left = false;
  dispatch_floating(dtype, op, [&](auto element) {
    using T = decltype(element);
    MatmulArgs<T> args;
    fill_args(args, p, batch, reduce);
    run_typed(args, items);
    sums_left = args.left_sums != nullptr;
  });
  return sums_left;
}

}  // namespace tilewright
