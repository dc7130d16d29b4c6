#include "ops/gpu.h"

#include <atomic>
#include <memory>
#include <mutex>

namespace tilewright {

const char* const kOpNames[kOps] = {
    "attention",  "batch_norm", "conv2d",       "dropout", "dropout_add", "dropout_add_layer_norm",
    "layer_norm", "linear",     "masked_scale", "matmul"};

namespace {

constexpr int kMaxDevices = 64;  // c10's own limit of CUDA devices is 120; those beyond are native's

struct Tables {
  std::mutex mutex;
  std::function<GpuTable(int)> source;
  std::vector<std::unique_ptr<GpuTable>> owned;  // tables in use somewhere are never freed
  std::array<std::atomic<const GpuTable*>, kMaxDevices> of_device{};
};

Tables& tables() {
  static auto* instance = new Tables;  // outlives every thread that may still call an op at exit
  return *instance;
}

const GpuTable* find_table(int device) {
  Tables& all = tables();
  std::function<GpuTable(int)> source;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    source = all.source;
  }
  if (!source) return nullptr;
  auto table = std::make_unique<GpuTable>(source(device));  // without the lock: Python may wait for another thread
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.owned.push_back(std::move(table));
  all.of_device[device].store(all.owned.back().get(), std::memory_order_release);
  return all.owned.back().get();
}

int bit_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return 1;
    case at::kDouble:
      return 2;
    case at::kBFloat16:
      return 4;
    case at::kHalf:
      return 8;
    default:
      return 0;
  }
}

}  // namespace

void set_gpu_tables(std::function<GpuTable(int)> source) {
  Tables& all = tables();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.source = std::move(source);
  for (auto& table : all.of_device) table.store(nullptr, std::memory_order_release);
}

bool gpu_serves(Op op, const Tensor& tensor) {
  // A tensor without an index (a fake one) lies on the first device.
  const int device = std::max<int>(0, tensor.device().index());
  if (device >= kMaxDevices) return false;
  const GpuTable* table = tables().of_device[device].load(std::memory_order_acquire);
  if (table == nullptr) table = find_table(device);
  return table != nullptr && ((*table)[static_cast<size_t>(op)] & bit_of(tensor.scalar_type())) != 0;
}

}  // namespace tilewright
