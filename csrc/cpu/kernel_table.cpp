#include "cpu/kernel_table.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#define TILEWRIGHT_DECLARE_2(family, isa) extern "C" void tilewright_fill_##family##_##isa(tilewright::KernelTable*);
#define TILEWRIGHT_DECLARE_1(isa, family) TILEWRIGHT_DECLARE_2(family, isa)
#define TILEWRIGHT_DECLARE_baseline(family) TILEWRIGHT_DECLARE_1(baseline, family)
#define TILEWRIGHT_DECLARE_avx2(family) TILEWRIGHT_DECLARE_1(avx2, family)
#define TILEWRIGHT_DECLARE_avx512(family) TILEWRIGHT_DECLARE_1(avx512, family)
#define TILEWRIGHT_DECLARE_avx512_bf16(family) TILEWRIGHT_DECLARE_1(avx512_bf16, family)
#define TILEWRIGHT_FAMILIES_OF_baseline TILEWRIGHT_FAMILIES
#define TILEWRIGHT_FAMILIES_OF_avx2 TILEWRIGHT_FAMILIES
#define TILEWRIGHT_FAMILIES_OF_avx512 TILEWRIGHT_FAMILIES
#define TILEWRIGHT_FAMILIES_OF_avx512_bf16 TILEWRIGHT_BF16_FAMILIES
#define X(isa) TILEWRIGHT_FAMILIES_OF_##isa(TILEWRIGHT_DECLARE_##isa)
TILEWRIGHT_ISA_LIST
#undef X

namespace tilewright {
namespace {

// __builtin_cpu_supports also asks the operating system (XGETBV) whether it saves the wide registers.
bool cpu_runs(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx2") {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
  }
  if (isa == "avx512") {
    return cpu_runs("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (isa == "avx512_bf16") return cpu_runs("avx512") && __builtin_cpu_supports("avx512bf16");
#endif
  return isa == "baseline";
}

#define TILEWRIGHT_FILL_baseline(family) tilewright_fill_##family##_baseline(&table);
#define TILEWRIGHT_FILL_avx2(family) tilewright_fill_##family##_avx2(&table);
#define TILEWRIGHT_FILL_avx512(family) tilewright_fill_##family##_avx512(&table);
#define TILEWRIGHT_FILL_avx512_bf16(family) tilewright_fill_##family##_avx512_bf16(&table);

// Tables of the ISAs that this machine runs, in the order of CMakeLists.txt: slowest first. What an ISA's units leave
// out is that of the ISA below it.
const std::vector<KernelTable>& tables() {
  static const std::vector<KernelTable> all = [] {
    std::vector<KernelTable> filled;
#define X(isa_name)                                                                        \
  if (cpu_runs(#isa_name)) {                                                               \
    KernelTable table = filled.empty() ? KernelTable{} : filled.back();                    \
    table.isa = #isa_name;                                                                 \
    TILEWRIGHT_FAMILIES_OF_##isa_name(TILEWRIGHT_FILL_##isa_name) filled.push_back(table); \
  }
    TILEWRIGHT_ISA_LIST
#undef X
    return filled;
  }();
  return all;
}

const KernelTable* find_table(const std::string& name) {
  for (const KernelTable& table : tables()) {
    if (name == table.isa) return &table;
  }
  return nullptr;
}

// The fastest table not above TILEWRIGHT_ISA; an ISA that the machine lacks caps to the best it has.
const KernelTable* choose_table() {
  const char* cap = std::getenv("TILEWRIGHT_ISA");
  const std::string name = cap == nullptr ? "" : cap;
  if (name.empty()) return &tables().back();
  if (name != "avx512_bf16" && name != "avx512" && name != "avx2" && name != "baseline") {
    throw std::runtime_error("TILEWRIGHT_ISA must be avx512_bf16, avx512, avx2 or baseline, got '" + name + "'");
  }
  const KernelTable* table = find_table(name);
  return table != nullptr ? table : &tables().back();
}

std::atomic<const KernelTable*> active_table{nullptr};

}  // namespace

const KernelTable& kernel_table() {
  const KernelTable* table = active_table.load(std::memory_order_acquire);
  if (table == nullptr) {
    table = choose_table();
    active_table.store(table, std::memory_order_release);
  }
  return *table;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable& table : tables()) names.emplace_back(table.isa);
  return names;
}

void force_isa(const std::string& name) {
  const KernelTable* table = find_table(name);
  if (table == nullptr) throw std::runtime_error("this machine or build has no ISA '" + name + "'");
  active_table.store(table, std::memory_order_release);
}

}  // namespace tilewright
