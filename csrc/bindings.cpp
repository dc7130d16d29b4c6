// What Python asks of the extension beside the torch ops: build facts, ISA control, and the short way to the ops.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <map>

#include "cpu/kernel_table.h"
#include "cpu/matmul_split.h"
#include "cpu/roofline.h"
#include "direct_call.h"
#include "ops/gpu.h"

namespace {

// One line per op: the name and the signature of its schema.
void add_direct_calls(pybind11::module_ m) {
  using at::Scalar, at::Tensor, tilewright::OptionalTensor, tilewright::direct::add;
  add<"layer_norm", Tensor(const Tensor&, c10::SymIntArrayRef, const OptionalTensor&, const OptionalTensor&, double)>(
      m);
  add<"scaled_dot_product_attention", Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, double,
                                             bool, std::optional<double>, bool)>(m);
  add<"dropout", Tensor(const Tensor&, double, bool)>(m);
  add<"matmul", Tensor(const Tensor&, const Tensor&)>(m);
  add<"bmm", Tensor(const Tensor&, const Tensor&)>(m);
  add<"baddbmm", Tensor(const Tensor&, const Tensor&, const Tensor&, const Scalar&, const Scalar&)>(m);
  add<"linear", Tensor(const Tensor&, const Tensor&, const OptionalTensor&)>(m);
  add<"linear_act", Tensor(const Tensor&, const Tensor&, const OptionalTensor&, c10::string_view)>(m);
}

// How a float32 product is cut for threads: (row parts, column parts, stretches of K).
std::tuple<int64_t, int64_t, int64_t> split_matmul(int64_t items, int64_t rows, int64_t cols, int64_t depth,
                                                   bool packs) {
  using tilewright::MatmulPath;
  const auto split =
      tilewright::split_matmul(items, rows, cols, depth, packs ? MatmulPath::kTile : MatmulPath::kStream,
                               tilewright::kernels<float>().matmul.blocks.block_cols(depth), /*cuts_depth=*/true);
  return {split.row_parts, split.col_parts, split.stretches};
}

// source(device) -> {op: dtype bits}, or None: no op is served on a GPU.
void set_gpu_tables(std::optional<pybind11::function> source) {
  if (!source.has_value()) return tilewright::set_gpu_tables(nullptr);
  // Held for the rest of the process: threads may ask for a table while the interpreter shuts down.
  auto* held = new pybind11::function(std::move(*source));
  tilewright::set_gpu_tables([held](int device) {
    const pybind11::gil_scoped_acquire gil;
    const auto of_op = (*held)(device).cast<std::map<std::string, int>>();
    tilewright::GpuTable table{};
    for (int op = 0; op < tilewright::kOps; ++op) {
      const auto found = of_op.find(tilewright::kOpNames[op]);
      if (found != of_op.end()) table[static_cast<size_t>(op)] = static_cast<uint8_t>(found->second);
    }
    return table;
  });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "tilewright's compiled part; the ops are in torch.ops.tilewright";
  m.attr("torch_version") = TILEWRIGHT_TORCH_VERSION;
  m.attr("compiler") = "g++ " __VERSION__;
  m.def("available_isas", &tilewright::available_isas, "ISAs this build has and this machine runs, slowest first");
  m.def("active_isa", [] { return std::string(tilewright::kernel_table().isa); }, "the ISA in use");
  m.def("force_isa", &tilewright::force_isa, "use the named ISA from now on");
  m.def("measure_fma_peak", &tilewright::measure_fma_peak, pybind11::call_guard<pybind11::gil_scoped_release>(),
        "GFLOP/s of multiply-adds in the named dtype, on the ISA in use and torch's threads");
  m.def("split_matmul", &split_matmul, "how a float32 product is cut for threads: row parts, column parts, stretches",
        pybind11::arg("items"), pybind11::arg("rows"), pybind11::arg("cols"), pybind11::arg("depth"),
        pybind11::arg("packs"));
  m.def("set_gpu_tables", &set_gpu_tables, "how to find out which ops a GPU serves, as {op: dtype bits}");
  add_direct_calls(m.def_submodule("direct", "the ops' short way from Python: None means take torch.ops' way"));
}
