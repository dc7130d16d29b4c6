// The register tile of pairs of bfloat16 on a tile unit (AMX). Included by gemm.h.
//
//             right: 16 pairs of K x 32 columns            K advances by 16 pairs a step; what is behind the end of K
//             +--------+--------+                          is 0 in both operands (ElementTraits::kStep)
//             | tile 6 | tile 7 |
//    +--------+--------+--------+
//    | tile 4 | tile 0 | tile 1 |  rows 0 ... 15
//    +--------+--------+--------+
//    | tile 5 | tile 2 | tile 3 |  rows 16 ... 31          sums start from what C holds, or from 0
//    +--------+--------+--------+
//      left: 16 rows x 16 pairs each
//
// Loads and stores take three times as long where rows cross cache lines, so operands made by us start on one.
#pragma once

namespace tilewright {
namespace {

constexpr int64_t kUnitRows = 16, kUnitStep = 16;
// Copies fill a step with whole vectors (copy_left, clear_behind).
static_assert(kUnitStep == kStepOf<BF16Pair> && kUnitStep == kLanes<BF16Pair>);

// What LDTILECFG reads: bytes of a row and rows of each tile register.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Rows that the tile registers of this thread are configured for, 0: they are released. Configuring takes 60 ns, as
// much as two small products, and the unit keeps it. Initial-exec: no call to find it.
__attribute__((tls_model("initial-exec"))) thread_local int64_t configured_rows = 0;

// GCC's intrinsics do not say which memory they read: what was stored before has to be there.
inline TILEWRIGHT_INLINE void finish_stores() { asm volatile("" ::: "memory"); }

inline void configure_tiles(int64_t rows) {
  if (configured_rows == rows) return;
  TileConfiguration configuration;
  for (int i = 0; i < 8; ++i) configuration.row_bytes[i] = 64;
  const int64_t top = rows < kUnitRows ? rows : kUnitRows, bottom = rows > kUnitRows ? rows - kUnitRows : kUnitRows;
  const int64_t rows_of[] = {top, top, bottom, bottom, top, bottom, kUnitStep, kUnitStep};
  for (int i = 0; i < 8; ++i) configuration.rows[i] = static_cast<uint8_t>(rows_of[i]);
  finish_stores();
  _tile_loadconfig(&configuration);
  configured_rows = rows;
}

// Held by every kernel that multiplies: other libraries find the unit as they left it, and it may sleep.
struct TileUnitScope {
  TileUnitScope() = default;
  TileUnitScope(const TileUnitScope&) = delete;
  ~TileUnitScope() {
    if (configured_rows == 0) return;
    _tile_release();
    configured_rows = 0;
  }
};

// sums[rows][32] (+)= left * right, rows beyond 16 if kTall, 16 columns unless kWide. K is one stretch of left's rows,
// or several of K elements each, which start at the given offsets from a.
template <bool kTall, bool kWide>
inline TILEWRIGHT_INLINE void multiply_tiles(int64_t K, const BF16Pair* a, int64_t a_row, const BF16Pair* b,
                                             int64_t b_row, float* sums, int64_t sums_row, bool accumulate,
                                             const int32_t* stretches = nullptr, int64_t stretch_count = 1) {
  constexpr int64_t kPair = sizeof(BF16Pair);
  const int64_t sums_bytes = sums_row * kPair, a_bytes = a_row * kPair, b_bytes = b_row * kPair;
  float* const below = sums + kUnitRows * sums_row;
  finish_stores();
  if (accumulate) {
    _tile_loadd(0, sums, sums_bytes);
    if constexpr (kWide) _tile_loadd(1, sums + kUnitRows, sums_bytes);
    if constexpr (kTall) _tile_loadd(2, below, sums_bytes);
    if constexpr (kTall && kWide) _tile_loadd(3, below + kUnitRows, sums_bytes);
  } else {
    _tile_zero(0);
    if constexpr (kWide) _tile_zero(1);
    if constexpr (kTall) _tile_zero(2);
    if constexpr (kTall && kWide) _tile_zero(3);
  }
  for (int64_t s = 0; s < stretch_count; ++s, b += K * b_row) {
    const BF16Pair* const left = stretches == nullptr ? a : a + stretches[s];
    for (int64_t k = 0; k < K; k += kUnitStep) {
      _tile_loadd(6, b + k * b_row, b_bytes);
      _tile_loadd(4, left + k, a_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kWide) {
        _tile_loadd(7, b + k * b_row + kUnitRows, b_bytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kTall) {
        _tile_loadd(5, left + k + kUnitRows * a_row, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kWide) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums, sums_bytes);
  if constexpr (kWide) _tile_stored(1, sums + kUnitRows, sums_bytes);
  if constexpr (kTall) _tile_stored(2, below, sums_bytes);
  if constexpr (kTall && kWide) _tile_stored(3, below + kUnitRows, sums_bytes);
}

// As gemm_stretches.
template <int kVectors>
void multiply_stretches_on_tile_unit(int64_t stretches, const int32_t* offsets, int64_t K, const BF16Pair* a,
                                     int64_t a_row, const BF16Pair* b, float* c, int64_t c_row) {
  configure_tiles(kTileRows);
  multiply_tiles<true, (kVectors > 1)>(K, a, a_row, b, kTileCols<BF16Pair>, c, c_row, false, offsets, stretches);
}

// As gemm_tile: K in elements, a multiple of kUnitStep; left's rows contiguous (a_col = 1).
template <int kRows, int kVectors, typename C>
void multiply_on_tile_unit(int64_t K, const BF16Pair* a, int64_t a_row, const BF16Pair* b, int64_t b_row, C* c,
                           int64_t c_row, int64_t n, const TileEnd<C>& end) {
  constexpr bool kTall = kRows > kUnitRows, kWide = kVectors > 1;
  constexpr int64_t kWidth = kVectors * kLanes<float>;
  using Traits = ElementTraits<BF16Pair>;
  configure_tiles(kRows);
  if constexpr (sizeof(C) == sizeof(float)) {
    if (n == kWidth && end.addend == nullptr) {
      return multiply_tiles<kTall, kWide>(K, a, a_row, b, b_row, c, c_row, end.accumulate);
    }
  }
  alignas(64) float sums[kRows * kWidth];
  for (int64_t i = 0; end.accumulate && i < kRows; ++i) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kWidth; v += kLanes<float>) {
      const int64_t width = n - v < kLanes<float> ? (n - v > 0 ? n - v : 0) : kLanes<float>;
      store(sums + i * kWidth + v, load(c + i * c_row + v, width));
    }
  }
  multiply_tiles<kTall, kWide>(K, a, a_row, b, b_row, sums, kWidth, end.accumulate);
  if (n == kWidth && end.addend == nullptr) {
    for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kWidth; v += kLanes<float>) {
        Traits::store_sums(c + i * c_row + v, load(sums + i * kWidth + v));
      }
    }
    return;
  }
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kWidth; v += kLanes<float>) {
      const int64_t width = n - v < kLanes<float> ? n - v : kLanes<float>;
      if (width <= 0) break;
      VecF32 sum = load(sums + i * kWidth + v);
      if (end.addend != nullptr) sum += load(end.addend + i * end.addend_row + v, width);
      Traits::store_sums(c + i * c_row + v, sum, width);
    }
  }
}

}  // namespace
}  // namespace tilewright
