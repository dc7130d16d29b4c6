// relu, gelu (exact), gelu_tanh, silu and their derivatives on vectors of accumulators.
//
// With Phi the normal distribution's integral, phi its density and sigma(x) = 1 / (1 + exp(-x)):
//   gelu       x * Phi(x)                                    Phi(x) + x * phi(x)
//   gelu_tanh  x * sigma(2u), u = sqrt(2/pi) (x + c x^3)      sigma + 2 x sigma (1 - sigma) u',  c = 0.044715
//   silu       x * sigma(x)                                  sigma + x * sigma * (1 - sigma)
// Phi is built from its small tail, Phi(-|x|) = exp(-x^2/2) * erfcx(|x| / sqrt 2) / 2, which has no cancellation on
// either side. erfcx(z) (1 + 2z) is a polynomial in t = (z - 3) / (z + 3) through Chebyshev nodes on all z that matter
// (error 3.8e-9 at degree 10 for float32, 8.9e-18 at degree 23 for float64; fitted with mpmath).
// NaN stays NaN; infinities give what native's formulas give.
#pragma once
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

// e^x. x = n ln 2 + r with ln 2 in two parts of which the first times n is exact, so the error does not grow with |x|.
template <typename A>
inline Vec<A> exp(Vec<A> x) {
  constexpr bool kFloat = sizeof(A) == 4;
  constexpr A kLog2e = A(1.4426950408889634074);
  constexpr A kLn2High = kFloat ? A(0.693145751953125) : A(0.69314718055829871446);
  constexpr A kLn2Low = kFloat ? A(1.428606765330187e-06) : A(1.6465949582897082e-12);
  constexpr A kRound = kFloat ? A(12582912.0) : A(6755399441055744.0);
  constexpr A kLimit = kFloat ? A(110) : A(760);  // beyond it e^x is 0 or Inf
  x = x < -kLimit ? broadcast<A>(-kLimit) : x;
  x = x > kLimit ? broadcast<A>(kLimit) : x;
  const Vec<A> n = (x * kLog2e + kRound) - kRound;
  const Vec<A> r = (x - n * kLn2High) - n * kLn2Low;
  return scale_by_power_of_two(exp2<A>(r * kLog2e), n);
}

template <typename A>
inline Vec<A> sigmoid(Vec<A> x) {
  return A(1) / (A(1) + exp<A>(-x));
}

// sigma'(x) = sigma(x) sigma(-x), and sigma(x) in `value`. The smaller of the two factors comes from the exponential
// itself: 1 - sigma(x) would have lost its digits where sigma(x) is near 1.
template <typename A>
inline Vec<A> sigmoid_slope(Vec<A> x, Vec<A>& value) {
  const Vec<A> decay = exp<A>(x < A(0) ? x : -x);
  const Vec<A> large = A(1) / (A(1) + decay);
  const Vec<A> small = decay * large;
  value = x < A(0) ? small : large;
  return large * small;
}

// Phi(x), and exp(-x^2/2) in `gauss`.
template <typename A>
inline Vec<A> normal_integral(Vec<A> x, Vec<A>& gauss) {
  constexpr bool kFloat = sizeof(A) == 4;
  constexpr A kLimit = kFloat ? A(14.5) : A(39);  // beyond it exp(-x^2/2) is 0
  Vec<A> size = x < A(0) ? -x : x;
  size = size > kLimit ? broadcast<A>(kLimit) : size;
  const Vec<A> square = rounded(size * size);
  const Vec<A> rest = fma(size, size, -square);  // what rounding took from the square
  gauss = exp<A>(square * A(-0.5)) * (A(1) - rest * A(0.5));
  const Vec<A> z = size * A(0.70710678118654752440);
  const Vec<A> t = (z - A(3)) / (z + A(3));
  Vec<A> scaled;
  if constexpr (kFloat) {
    constexpr float kTerms[] = {1.253008008f,     -0.13562114537f,    -0.047562319785f,  0.1296467185f,
                                -0.11927191913f,  0.06829302758f,     -0.02379466407f,   0.0025768564083f,
                                0.0020017712377f, -0.00078812072752f, -0.00027359600062f};
    scaled = polynomial(t, kTerms);
  } else {
    constexpr double kTerms[] = {
        1.253008058269729608,    -0.1356211061245810867,    -0.04756229435345306344,   0.1296451587027502572,
        -0.1192736634151685682,  0.06830802734440603874,    -0.02377051492193764728,   0.002529391807900063013,
        0.001888690398169680113, -0.0007798321855259280049, -0.0001051600624129954832, 0.0001250987929274765002,
        4.950552349634666885e-6, -0.0000200982538376259265, -7.341631654668390299e-7,  3.466159671279617309e-6,
        3.606686347542412631e-7, -6.056586389337659126e-7,  -1.44103543796816878e-7,   8.977480611608503748e-8,
        4.113475639215801596e-8, -5.75650399614750779e-9,   -6.467844455782987211e-9,  -1.067259521497691589e-9};
    scaled = polynomial(t, kTerms);
  }
  const Vec<A> tail = A(0.5) * gauss * scaled / (A(1) + A(2) * z);
  return x < A(0) ? tail : A(1) - tail;
}

constexpr double kRootTwoOverPi = 0.79788456080286535588, kRootHalfOverPi = 0.39894228040143267794,
                 kTanhCubic = 0.044715;

template <typename A>
inline Vec<A> activate(Activation kind, Vec<A> x) {
  switch (kind) {
    case Activation::kRelu:
      return x < A(0) ? Vec<A>{} : x;
    case Activation::kGelu: {
      Vec<A> gauss;
      return x * normal_integral<A>(x, gauss);
    }
    case Activation::kGeluTanh:
      return x * sigmoid<A>(A(2 * kRootTwoOverPi) * (x + A(kTanhCubic) * x * x * x));
    case Activation::kSilu:
      return x * sigmoid<A>(x);
    default:
      return x;
  }
}

// The derivative at x.
template <typename A>
inline Vec<A> activation_slope(Activation kind, Vec<A> x) {
  switch (kind) {
    case Activation::kRelu:
      return x <= A(0) ? Vec<A>{} : broadcast<A>(1);
    case Activation::kGelu: {
      Vec<A> gauss;
      const Vec<A> integral = normal_integral<A>(x, gauss);
      return integral + x * gauss * A(kRootHalfOverPi);
    }
    case Activation::kGeluTanh: {
      const Vec<A> square = x * x;
      const Vec<A> inner = A(2 * kRootTwoOverPi) * (A(1) + A(3 * kTanhCubic) * square);
      Vec<A> s;
      const Vec<A> slope = sigmoid_slope<A>(A(2 * kRootTwoOverPi) * (x + A(kTanhCubic) * square * x), s);
      return s + x * slope * inner;
    }
    case Activation::kSilu: {
      Vec<A> s;
      const Vec<A> slope = sigmoid_slope<A>(x, s);
      return s + x * slope;
    }
    default:
      return broadcast<A>(1);
  }
}

template <typename T>
void activation_backward(Activation kind, const T* dy, const T* x, T* dx, int64_t begin, int64_t end) {
  using A = Acc<T>;
  for_each_vector<A>(end - begin, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    const int64_t i = begin + c;
    const Vec<A> upstream = load(dy + i, n);
    // A negative input of relu stops Inf and NaN upstream too, as native does.
    if (kind == Activation::kRelu) return store(dx + i, load(x + i, n) <= A(0) ? Vec<A>{} : upstream, n);
    store(dx + i, upstream * activation_slope<A>(kind, load(x + i, n)), n);
  });
}

template <typename T>
void fill_activation(TypedKernels<T>& table) {
  table.activation = {activation_backward<T>};
}

}  // namespace
}  // namespace tilewright
