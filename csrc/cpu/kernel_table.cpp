#include "cpu/kernel_table.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define TILEWRIGHT_DECLARE_2(family, isa) extern "C" void tilewright_fill_##family##_##isa(tilewright::KernelTable*);
#define TILEWRIGHT_DECLARE_1(isa, family) TILEWRIGHT_DECLARE_2(family, isa)
#define TILEWRIGHT_DECLARE_baseline(family) TILEWRIGHT_DECLARE_1(baseline, family)
#define TILEWRIGHT_DECLARE_avx2(family) TILEWRIGHT_DECLARE_1(avx2, family)
#define TILEWRIGHT_DECLARE_avx512(family) TILEWRIGHT_DECLARE_1(avx512, family)
#define TILEWRIGHT_DECLARE_avx512_bf16(family) TILEWRIGHT_DECLARE_1(avx512_bf16, family)
#define TILEWRIGHT_DECLARE_amx_bf16(family) TILEWRIGHT_DECLARE_1(amx_bf16, family)
#define TILEWRIGHT_FAMILIES_OF_baseline TILEWRIGHT_FAMILIES
#define TILEWRIGHT_FAMILIES_OF_avx2 TILEWRIGHT_FAMILIES
#define TILEWRIGHT_FAMILIES_OF_avx512 TILEWRIGHT_FAMILIES
#define TILEWRIGHT_FAMILIES_OF_avx512_bf16 TILEWRIGHT_BF16_FAMILIES
#define TILEWRIGHT_FAMILIES_OF_amx_bf16 TILEWRIGHT_BF16_FAMILIES
#define X(isa) TILEWRIGHT_FAMILIES_OF_##isa(TILEWRIGHT_DECLARE_##isa)
TILEWRIGHT_ISA_LIST
#undef X

namespace tilewright {
namespace {

#if defined(__x86_64__)
// CPUID leaf 7, EDX: bit 22 AMX-BF16, bit 24 AMX-TILE. By hand because compilers' names for them are young.
bool has_amx_bf16() {
  constexpr unsigned kBits = 1u << 22 | 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBits) == kBits;
}

// Linux saves the tile registers of processes that have asked for it, and refuses where it can't save them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

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
  if (isa == "amx_bf16") return cpu_runs("avx512_bf16") && has_amx_bf16() && may_use_tiles();
#endif
  return isa == "baseline";
}

bool has_large_l1() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  return sysconf(_SC_LEVEL1_DCACHE_SIZE) >= 48 * 1024;
#else
  return false;
#endif
}

// Blocks of AVX-512 are half as deep where a left tile and a panel of the right operand then lie in L1 together: with
// 48 KB, 256 float32 give 3 to 9 % over 512; with 32 KB, where neither fits, 512 give 3 %.
void fit_blocks_to_l1(KernelTable& table) {
  if (table.isa != std::string("avx512") || !has_large_l1()) return;
  for (MatmulBlocks* blocks :
       {&table.f32.matmul.blocks, &table.f64.matmul.blocks, &table.bf16.matmul.blocks, &table.f16.matmul.blocks}) {
    blocks->depth /= 2;
    blocks->whole_depth /= 2;
  }
}

#define TILEWRIGHT_FILL_baseline(family) tilewright_fill_##family##_baseline(&table);
#define TILEWRIGHT_FILL_avx2(family) tilewright_fill_##family##_avx2(&table);
#define TILEWRIGHT_FILL_avx512(family) tilewright_fill_##family##_avx512(&table);
#define TILEWRIGHT_FILL_avx512_bf16(family) tilewright_fill_##family##_avx512_bf16(&table);
#define TILEWRIGHT_FILL_amx_bf16(family) tilewright_fill_##family##_amx_bf16(&table);

// Tables of the ISAs that this machine runs, in the order of CMakeLists.txt: slowest first. What an ISA's units leave
// out is that of the ISA below it.
const std::vector<KernelTable>& tables() {
  static const std::vector<KernelTable> all = [] {
    std::vector<KernelTable> filled;
#define X(isa_name)                                                     \
  if (cpu_runs(#isa_name)) {                                            \
    KernelTable table = filled.empty() ? KernelTable{} : filled.back(); \
    table.isa = #isa_name;                                              \
    TILEWRIGHT_FAMILIES_OF_##isa_name(TILEWRIGHT_FILL_##isa_name);      \
    fit_blocks_to_l1(table);                                            \
    filled.push_back(table);                                            \
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
  constexpr std::array kNames{"amx_bf16", "avx512_bf16", "avx512", "avx2", "baseline"};
  if (std::find(kNames.begin(), kNames.end(), name) == kNames.end()) {
    throw std::runtime_error("TILEWRIGHT_ISA must be amx_bf16, avx512_bf16, avx512, avx2 or baseline, got '" + name +
                             "'");
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
