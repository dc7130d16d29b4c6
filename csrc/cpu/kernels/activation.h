// relu, relu6, gelu (exact), gelu_tanh, silu and their derivatives on vectors of accumulators.
//
// With Phi the normal distribution's integral, phi its density and sigma(x) = 1 / (1 + exp(-x)):
//   gelu       x * Phi(x)                                    Phi(x) + x * phi(x)
//   gelu_tanh  x * sigma(2u), u = sqrt(2/pi) (x + c x^3)      sigma + 2 x sigma (1 - sigma) u',  c = 0.044715
//   silu       x * sigma(x)                                  sigma + x * sigma * (1 - sigma)
// Phi is built from its small tail, Phi(-|x|) = exp(-x^2/2) * erfcx(|x| / sqrt 2) / 2, which has no cancellation on
// either side. With t = 1 / (1 + |x| / 5), erfcx / (2 t) is a polynomial in 2t - 1 through Chebyshev nodes on all |x|
// that matter (error 1.4e-8 at degree 9 for float32, 4e-18 at degree 22 for float64; fitted with mpmath).
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
  constexpr A kLimit = kFloat ? A(110) : A(760);  // beyond it e^x is 0 or Inf
  x = min(broadcast<A>(kLimit), max(broadcast<A>(-kLimit), x));
  const Vec<A> n = rounded_to_whole<A>(x * kLog2e);
  const Vec<A> r = (x - n * kLn2High) - n * kLn2Low;
  return scale_by_power_of_two(exp2_of_fraction<A>(r * kLog2e), n);
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

// exp(-x^2/2) = 2^(-c x^2) for 0 <= x. What rounding takes from the square, from its product with c and from c itself
// goes into the fraction, so that the error does not grow with x.
template <typename A>
inline Vec<A> normal_density(Vec<A> x) {
  constexpr double kExact = -0.72134752044448170368;  // -1 / (2 ln 2)
  constexpr A kHigh = A(kExact), kLow = sizeof(A) == 4 ? A(kExact - kHigh) : A(-1.0177636870465516e-17);
  const Vec<A> square = rounded(x * x), power = rounded(square * kHigh);
  const Vec<A> n = rounded_to_whole<A>(power);
  const Vec<A> lost = fma(fma(x, x, -square), broadcast<A>(kHigh), fma(square, broadcast<A>(kHigh), -power));
  const Vec<A> fraction = (power - n) + fma(square, broadcast<A>(kLow), lost);
  return scale_by_power_of_two(exp2_of_fraction<A>(fraction), n);
}

// Phi(x), and exp(-x^2/2) in `gauss`.
template <typename A>
inline Vec<A> normal_integral(Vec<A> x, Vec<A>& gauss) {
  constexpr bool kFloat = sizeof(A) == 4;
  constexpr A kLimit = kFloat ? A(14.5) : A(39);  // beyond it exp(-x^2/2) is 0
  const Vec<A> size = min(broadcast<A>(kLimit), max(x, -x));
  gauss = normal_density<A>(size);
  const Vec<A> t = A(1) / (A(1) + A(0.2) * size), at = t + t - A(1);
  Vec<A> scaled;
  if constexpr (kFloat) {
    constexpr float kTerms[] = {0.1538386081f,  0.1330764888f,   0.09906131096f,   0.06270700498f,    0.03300086838f,
                                0.01382177838f, 0.004178315571f, 0.0005942102877f, -0.0002007322151f, -7.785631648e-5f};
    scaled = polynomial(at, kTerms);
  } else {
    constexpr double kTerms[] = {
        0.1538386099500125917,     0.1330765005780113401,     0.09906112319399528265,     0.06270663133426090894,
        0.03300407323407694358,    0.01382372774126203272,    0.004159013359976635928,    0.0005986753541017084877,
        -0.0001595738796932140211, -0.0001089798129546259788, -0.00001187514560198317274, 9.952562854117161034e-6,
        3.336242748408412291e-6,   -7.961804315736082239e-7,  -5.538534191994860491e-7,   6.732307362024942344e-8,
        8.662820713725169907e-8,   -8.454998748013069677e-9,  -1.318844332495444609e-8,   1.862712198865211829e-9,
        1.532614360152008209e-9,   -3.506096802816463961e-10, -3.175493765494673076e-11};
    scaled = polynomial(at, kTerms);
  }
  const Vec<A> tail = gauss * (t * scaled);
  return x < A(0) ? tail : A(1) - tail;
}

constexpr double kRootTwoOverPi = 0.79788456080286535588, kRootHalfOverPi = 0.39894228040143267794,
                 kTanhCubic = 0.044715;

// NaN stays NaN.
template <typename V>
inline V relu(V v) {
  return v < V{} ? V{} : v;
}

template <typename A>
inline Vec<A> relu6(Vec<A> v) {
  const Vec<A> positive = relu(v);
  return positive > A(6) ? broadcast<A>(6) : positive;
}

// Calls body with the activation as a constant: a switch made once, outside the loop.
template <Activation kActivation>
struct ActivationConstant {
  static constexpr Activation value = kActivation;
};
template <typename Body>
inline void choose_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::kNone:
      return body(ActivationConstant<Activation::kNone>{});
    case Activation::kRelu:
      return body(ActivationConstant<Activation::kRelu>{});
    case Activation::kRelu6:
      return body(ActivationConstant<Activation::kRelu6>{});
    case Activation::kGelu:
      return body(ActivationConstant<Activation::kGelu>{});
    case Activation::kGeluTanh:
      return body(ActivationConstant<Activation::kGeluTanh>{});
    case Activation::kSilu:
      return body(ActivationConstant<Activation::kSilu>{});
  }
}

template <typename A>
inline Vec<A> activate(Activation kind, Vec<A> x) {
  switch (kind) {
    case Activation::kRelu:
      return relu(x);
    case Activation::kRelu6:
      return relu6<A>(x);
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

// The gradient of relu or relu6, whose input or output x is. Where it stops, it stops Inf and NaN upstream too, as
// native's does.
template <typename A>
inline Vec<A> stopped_gradient(Activation kind, Vec<A> x, Vec<A> upstream) {
  const Vec<A> passed = x <= A(0) ? Vec<A>{} : upstream;
  return kind == Activation::kRelu6 ? (x >= A(6) ? Vec<A>{} : passed) : passed;
}

// The derivative at x of the others.
template <typename A>
inline Vec<A> activation_slope(Activation kind, Vec<A> x) {
  switch (kind) {
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
    const Vec<A> upstream = load(dy + i, n), at = load(x + i, n);
    if (gradient_reads_output(kind)) return store(dx + i, stopped_gradient<A>(kind, at, upstream), n);
    store(dx + i, upstream * activation_slope<A>(kind, at), n);
  });
}

template <typename T>
void fill_activation(TypedKernels<T>& table) {
  table.activation = {activation_backward<T>};
}

}  // namespace
}  // namespace tilewright
