// SPDX-License-Identifier: MIT
// The mixed operation and relu_conv_bn on the CUDA engine, its kernels run by the emulator, against
// their definition in double precision, and what their results do not depend on.
#include <array>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_runs.h"
#include "device_features.h"
#include "engine/cuda/graph.h"
#include "engine/cuda/mixed_op.h"
#include "engine/cuda/relu_conv_bn.h"
#include "engine/mixed_op.h"
#include "mixed_definition.h"

namespace {

using cuda_runs::DeviceMemory;
using cuda_runs::refusal;
using device_features::Features;
using device_features::Layout;
using device_features::random_numbers;
using mixed_definition::Map;
using nasfast::Candidate;
using nasfast::MixedCandidates;
using nasfast::cuda::FeatureShape;
using nasfast::kernels::cuda::Precision;
using One = MixedCandidates::One;

// Relative errors of whole tensors. A channel's variance may be small beside its mean.
constexpr double kFp32 = 1e-5;
// Of the CPU engine's error in bf16: both round the same numbers, but not the same sums.
constexpr double kTimesCpu = 1.1;

const std::vector<One> kAll = {
    {Candidate::kZero, 1, false, false},    {Candidate::kIdentity, 1, false, false},
    {Candidate::kConv, 1, true, false},     {Candidate::kConv, 3, false, false},
    {Candidate::kAvgPool, 3, false, false}, {Candidate::kMaxPool, 3, false, false}};
const std::vector<One> kMany = {
    {Candidate::kMaxPool, 5, false, false},  {Candidate::kIdentity, 1, false, false},
    {Candidate::kConv, 5, true, true},       {Candidate::kZero, 1, false, false},
    {Candidate::kIdentity, 1, false, false}, {Candidate::kAvgPool, 7, false, false},
    {Candidate::kConv, 3, false, true}};

// A call, there and back.
struct Case {
  MixedCandidates candidates;
  int32_t batch, height, width;
  Precision precision;
  std::vector<double> x, grad_out;
  std::vector<float> weights, params;

  Case(const std::vector<One>& all, int32_t b, int32_t channels, int32_t h, int32_t w, Precision p)
      : candidates{all, channels}, batch(b), height(h), width(w), precision(p) {
    const int64_t count = int64_t{b} * channels * h * w;
    x = random_numbers(count, 1, p);
    grad_out = random_numbers(count, 2, p);
    for (size_t k = 0; k < all.size(); ++k) {
      weights.push_back((k % 2 == 0 ? 0.3f : -0.3f) - 0.1f * static_cast<float>(k));
    }
    const auto numbers = random_numbers(candidates.num_parameters(), 3, Precision::kFp32);
    params.assign(numbers.begin(), numbers.end());
  }
  FeatureShape shape() const { return {precision, {batch, height, width}}; }
  Features features(Layout layout) const {
    return Features(precision, layout, batch, candidates.channels, height, width);
  }
};

struct Results {
  Features out, grad_x;
  std::vector<float> statistics, grad_weights, grad_params;

  bool operator==(const Results& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
    };
    return out == other.out && grad_x == other.grad_x && same(statistics, other.statistics) &&
           same(grad_weights, other.grad_weights) && same(grad_params, other.grad_params);
  }
};

Results empty_results(const Case& of) {
  const auto convolutions = static_cast<size_t>(of.candidates.num_convolutions());
  return {of.features(Layout::kLast), of.features(Layout::kLast),
          std::vector<float>(convolutions * 2 * static_cast<size_t>(of.candidates.channels), 7.0f),
          std::vector<float>(of.weights.size(), 7.0f), std::vector<float>(of.params.size(), 7.0f)};
}

// Both ways, on a device.
struct Call {
  const Case& of;
  Features x, grad_out;
  Results found;
  nasfast::cuda::MixedForward forward;
  nasfast::cuda::MixedBackward backward;
  bool wants_x;
  DeviceMemory saved, memory, more;

  Call(const Case& given, Layout layout, bool wants)
      : of(given),
        x(of.features(layout)),
        grad_out(x),
        found(empty_results(of)),
        forward(of.candidates, of.shape()),
        backward(of.candidates, of.shape(), wants),
        wants_x(wants),
        saved(forward.saved_bytes()),
        memory(forward.bytes()),
        more(backward.bytes()) {
    CHECK_EQ(backward.saved_bytes(), forward.saved_bytes());
    x.set(of.x);
    grad_out.set(of.grad_out);
  }
  void run(cudaStream_t stream) {
    forward.run({x.tensor(), of.weights.data(), of.params.data(), found.out.data(),
                 found.statistics.data(), saved.get()},
                memory.get(), stream);
    backward.run({grad_out.tensor(), of.weights.data(), of.params.data(), saved.get(),
                  wants_x ? found.grad_x.data() : nullptr, found.grad_weights.data(),
                  found.grad_params.data()},
                 more.get(), stream);
  }
};

Results on_device(const Case& of, Layout layout = Layout::kPlain, bool wants_x = true) {
  Call call(of, layout, wants_x);
  call.run(nullptr);
  return call.found;
}

Results on_cpu(const Case& of) {
  Features x = of.features(Layout::kLast), grad_out = x;
  x.set(of.x);
  grad_out.set(of.grad_out);
  Results found = empty_results(of);
  const auto isa = nasfast::kernels::cpu::Isa::kBaseline;
  const auto view = [&](Features& features) {
    return nasfast::Features{features.data(), of.precision == Precision::kBf16,
                             of.batch,        of.height,
                             of.width,        of.candidates.channels};
  };
  const kernel_rows::Exact<std::byte> saved(
      nasfast::mixed_op_saved_bytes(of.candidates, view(x), isa));
  nasfast::mixed_op(of.candidates, view(x), of.weights.data(), of.params.data(), view(found.out),
                    found.statistics.data(), saved.get(), isa, 1);
  nasfast::mixed_op_backward(of.candidates, view(grad_out), of.weights.data(), of.params.data(),
                             found.statistics.data(), saved.get(), view(found.grad_x),
                             found.grad_weights.data(), found.grad_params.data(), isa, 1);
  return found;
}

double length(const std::vector<double>& numbers) {
  return std::sqrt(std::inner_product(numbers.begin(), numbers.end(), numbers.begin(), 0.0));
}

// Of the same size.
template <typename Number>
double error(const std::vector<Number>& found, const std::vector<double>& exact) {
  CHECK_EQ(found.size(), exact.size());
  std::vector<double> apart;
  for (size_t i = 0; i < exact.size(); ++i) apart.push_back(found[i] - exact[i]);
  const double size = length(exact);
  return size > 0 ? length(apart) / size : length(apart);
}

std::vector<std::pair<const char*, double>> errors(const Results& found,
                                                   const mixed_definition::Mixed& exact) {
  return {{"out", error(found.out.get(), exact.out)},
          {"statistics", error(found.statistics, exact.statistics)},
          {"grad_x", error(found.grad_x.get(), exact.grad_x)},
          {"grad_weights", error(found.grad_weights, exact.grad_weights)},
          {"grad_params", error(found.grad_params, exact.grad_params)}};
}

mixed_definition::Mixed defined(const Case& of) {
  return mixed_definition::mixed_op(of.candidates, of.batch, of.height, of.width, of.x,
                                    {of.weights.begin(), of.weights.end()},
                                    {of.params.begin(), of.params.end()}, of.grad_out);
}

std::string name_of(const Case& of, const char* what) {
  return std::to_string(of.batch) + "x" + std::to_string(of.candidates.channels) + "x" +
         std::to_string(of.height) + "x" + std::to_string(of.width) + " " + what;
}

void check_definition(const std::vector<One>& all, int32_t batch, int32_t channels, int32_t height,
                      int32_t width, double tolerance = kFp32) {
  const Case wide(all, batch, channels, height, width, Precision::kFp32);
  for (const auto& [what, off] : errors(on_device(wide), defined(wide))) {
    if (!(off <= tolerance)) {
      check::fail("fp32", 0, name_of(wide, what) + ": error " + check::show(off));
    }
  }
  const Case narrow(all, batch, channels, height, width, Precision::kBf16);
  const mixed_definition::Mixed exact = defined(narrow);
  const auto own = errors(on_device(narrow), exact), theirs = errors(on_cpu(narrow), exact);
  for (size_t i = 0; i < own.size(); ++i) {
    const auto& [what, off] = own[i];
    if (!(off <= kTimesCpu * theirs[i].second + kFp32)) {
      check::fail("bf16", 0,
                  name_of(narrow, what) + ": error " + check::show(off) + ", on the CPU " +
                      check::show(theirs[i].second));
    }
  }
}

// The same bits in whatever order threads run, however features lie in memory, and whether or not
// the gradient of the input is wanted.
void check_invariance(const Case& of) {
  const Results expected = on_device(of);
  for (const auto order : {emulator::Order::kReverse, emulator::Order::kShuffled}) {
    emulator::set_order(order);
    CHECK(on_device(of) == expected);
    emulator::set_order(emulator::Order::kForward);
  }
  for (const Layout layout : {Layout::kLast, Layout::kApart})
    CHECK(on_device(of, layout) == expected);
  Results without_x = on_device(of, Layout::kPlain, false);
  CHECK(without_x.grad_x == of.features(Layout::kLast));  // left alone
  without_x.grad_x = expected.grad_x;
  CHECK(without_x == expected);
}

// A value has the tensor's numbers, and zeros behind the last channel; also where there are more
// pixels than a grid has threads for at once.
void check_load() {
  for (const auto& [batch, channels, height, width] :
       {std::array{2, 5, 7, 9}, std::array{3, 40, 3, 5}, std::array{1, 1, 65536, 33}}) {
    const nasfast::kernels::cuda::Sides sides = {batch, height, width};
    const int64_t pixels = int64_t{batch} * height * width;
    const int32_t pitch = nasfast::kernels::cuda::pitch_of(channels);
    const auto numbers = random_numbers(pixels * channels, 6, Precision::kFp32);
    for (const Layout layout : {Layout::kPlain, Layout::kLast, Layout::kApart}) {
      if (layout != Layout::kPlain && height > 7) continue;
      Features features(Precision::kFp32, layout, batch, channels, height, width);
      features.set(numbers);
      const kernel_rows::Exact<float> value(pixels * pitch, 7.0f);
      CHECK_EQ(nasfast::kernels::cuda::launch_load_features(Precision::kFp32, features.tensor(),
                                                            sides, channels, value.get(), nullptr),
               cudaSuccess);
      int64_t wrong = 0;
      for (int64_t i = 0; i < pixels * pitch; ++i) {
        const int64_t pixel = i / pitch, c = i % pitch, plane = int64_t{height} * width;
        const int64_t at = (pixel / plane * channels + c) * plane + pixel % plane;
        wrong += value[i] != (c < channels ? numbers[static_cast<size_t>(at)] : 0.0);
      }
      CHECK_EQ(wrong, 0);
    }
  }
}

// A sum of nothing does not read its input.
void check_zeros() {
  Case of({kAll[0], kAll[0]}, 2, 3, 2, 2, Precision::kFp32);
  of.x.assign(of.x.size(), kernel_rows::kNan);
  const Results found = on_device(of);
  const std::vector<double> zeros(of.x.size(), 0.0);
  CHECK(found.out.get() == zeros && found.grad_x.get() == zeros);
  CHECK((found.grad_weights == std::vector<float>{0, 0}));
}

// As nasfast/_register.py tells torch.compile; tests/test_cuda_nn.py has the same numbers.
void check_saved_bytes() {
  const auto saved = [](const std::vector<One>& all, int32_t channels, Precision precision) {
    const Case of(all, 3, channels, 5, 4, precision);
    return nasfast::cuda::MixedForward(of.candidates, of.shape()).saved_bytes();
  };
  CHECK_EQ(saved(kAll, 4, Precision::kFp32), 5 * 2048 + 2 * (256 + 512));
  CHECK_EQ(saved(kAll, 17, Precision::kBf16), 5 * 3072 + 2 * (256 + 768));
  CHECK_EQ(saved({kAll[0]}, 17, Precision::kBf16), 3072);
}

void check_refusals() {
  const auto refused = [](const std::vector<One>& all, int32_t channels) {
    return refusal([&] {
      nasfast::cuda::require_mixed_op_fits({all, channels}, {Precision::kFp32, {9, 8, 8}});
    });
  };
  CHECK_EQ(refused(kAll, 64), "nothing");
  CHECK(cuda_runs::has(refused(kAll, 4096), "a value of 4096 channels: more than fit"));
  CHECK(cuda_runs::has(refused({{Candidate::kMaxPool, 31, false, false}}, 16), "more than fit"));
  emulator::set_most_shared(16 * 1024);
  CHECK(
      cuda_runs::has(refused(kAll, 64), "bytes of shared memory, on a CUDA device that has 16384"));
  const Case of(kAll, 2, 64, 8, 8, Precision::kFp32);
  CHECK(cuda_runs::has(refusal([&] { on_device(of); }), "that has 16384"));
  emulator::set_most_shared(163 * 1024);
}

// What was recorded may be repeated, on other numbers in the same places.
void check_recorded() {
  for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
    Case of(kMany, 2, 5, 7, 9, precision);
    Call call(of, Layout::kPlain, true);
    const nasfast::cuda::Graph graph([&](cudaStream_t stream) { call.run(stream); });
    CHECK(call.found == empty_results(of));
    of.x = random_numbers(static_cast<int64_t>(of.x.size()), 8, precision);
    for (float& weight : of.weights) weight *= 0.5f;
    call.x.set(of.x);
    graph.launch(nullptr);
    CHECK(call.found == on_device(of));
  }
}

struct Convolution {
  int32_t batch, in, height, width, out, kernel, stride;
};

Features relu_conv_bn(const Convolution& c, Precision precision, const std::vector<double>& x,
                      const std::vector<double>& weight, Layout layout, double eps) {
  Features features(precision, layout, c.batch, c.in, c.height, c.width);
  features.set(x);
  Features out(precision, Layout::kLast, c.batch, c.out, (c.height + c.stride - 1) / c.stride,
               (c.width + c.stride - 1) / c.stride);
  const nasfast::cuda::ReluConvBn own({c.in, c.out, c.kernel, c.stride, eps},
                                      {precision, {c.batch, c.height, c.width}});
  const DeviceMemory memory(own.bytes());
  const std::vector<float> weights(weight.begin(), weight.end());
  own.run(features.tensor(), weights.data(), out.data(), memory.get(), nullptr);
  return out;
}

void check_relu_conv_bn(const Convolution& c, double eps = 1e-5) {
  for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
    const auto x = random_numbers(int64_t{c.batch} * c.in * c.height * c.width, 1, precision);
    const auto weight = random_numbers(int64_t{c.out} * c.in * c.kernel * c.kernel, 2, precision);
    Map map(c.batch, c.in, c.height, c.width);
    std::copy(x.begin(), x.end(), map.numbers.begin());
    const auto exact = mixed_definition::relu_conv_bn(map, weight, c.out, c.kernel, c.stride, eps);
    const Features own = relu_conv_bn(c, precision, x, weight, Layout::kPlain, eps);
    const double off = error(own.get(), exact);
    // Two roundings to 8 bits.
    const double allowed = precision == Precision::kFp32 ? kFp32 : 2.0 / 256;
    if (!(off <= allowed)) {
      check::fail("relu_conv_bn", c.in, std::to_string(c.out) + ": error " + check::show(off));
    }
    for (const Layout layout : {Layout::kLast, Layout::kApart}) {
      CHECK(relu_conv_bn(c, precision, x, weight, layout, eps) == own);
    }
    emulator::set_order(emulator::Order::kShuffled);
    CHECK(relu_conv_bn(c, precision, x, weight, Layout::kPlain, eps) == own);
    emulator::set_order(emulator::Order::kForward);
  }
}

// One element a channel is its own mean; what is no number marks its channel alone.
void check_single_elements() {
  const Convolution one = {1, 3, 1, 1, 2, 3, 1};
  const auto x = random_numbers(3, 4, Precision::kFp32);
  const auto weight = random_numbers(54, 5, Precision::kFp32);
  CHECK((relu_conv_bn(one, Precision::kFp32, {0.7, 0.3, 0.1}, weight, Layout::kPlain, 1e-5).get() ==
         std::vector<double>{0, 0}));
  const Features lost = relu_conv_bn({2, 3, 1, 1, 2, 1, 1}, Precision::kFp32,
                                     {0.7, 0.3, kernel_rows::kNan, 0.1, 0.2, 0.3},
                                     {1, 1, 1, 1, 1, 1}, Layout::kPlain, 1e-5);
  for (const double number : lost.get()) CHECK(std::isnan(number));
}

}  // namespace

int main() {
  for (const auto& all : {kAll, kMany}) {
    check_definition(all, 2, 5, 7, 9);
    check_definition(all, 3, 8, 6, 4);  // channels as a device wants them
    check_definition(all, 5, 17, 4, 3);
    check_definition(all, 2, 3, 18, 20);  // many tiles of an image
  }
  check_definition(kAll, 40, 2, 1, 2);  // many images of a tile
  check_definition(kAll, 2, 70, 3, 3);  // more columns than a block has
  check_definition(kMany, 3, 24, 5, 2);
  check_definition({kAll[1]}, 2, 5, 3, 3);
  check_definition({kAll[0], kAll[1], kAll[1]}, 2, 16, 3, 3);
  check_definition({kAll[5]}, 2, 3, 4, 4);
  check_definition({kAll[4], kAll[0]}, 2, 3, 4, 4);
  check_definition({kMany[2]}, 2, 8, 4, 5);
  check_definition({{Candidate::kConv, 7, true, true}}, 2, 5, 4, 9);
  for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
    check_invariance(Case(kAll, 3, 5, 7, 9, precision));
    check_invariance(Case(kMany, 2, 16, 5, 18, precision));
  }
  check_load();
  check_zeros();
  check_saved_bytes();
  check_recorded();
  check_refusals();
  check_relu_conv_bn({2, 3, 4, 5, 4, 3, 1});
  check_relu_conv_bn({5, 16, 8, 8, 16, 3, 1});
  check_relu_conv_bn({3, 16, 9, 7, 33, 3, 2});
  check_relu_conv_bn({3, 5, 8, 8, 3, 1, 1}, 0.1);
  check_relu_conv_bn({3, 4, 5, 6, 5, 1, 2});
  check_relu_conv_bn({4, 2, 7, 7, 70, 5, 2}, 0);
  check_single_elements();
  return check::result();
}
