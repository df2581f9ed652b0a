// SPDX-License-Identifier: MIT
// One kernel of the CUDA engine on many lanes: what card_kernels.py calls. It is linked with the
// engine's own object files, so that what is timed is what runs.
//
// A lane has two passes. The first sums `terms` normalised tensors and, where there is an
// operation, feeds it; the second stands for whoever reads the result. The way back begins with
// that one's gradient.
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "engine/cuda/tables.h"

namespace {

using namespace nasfast;
using namespace nasfast::cuda;
using namespace kernels::cuda;

enum Operation : int32_t { kSum, kConvolution, kAverage, kMaximum };
enum Kernel : int32_t { kForward, kNorms, kInputGradient, kWeightGradient };
enum Where : int32_t { kTerm, kAffine, kResult, kReaderGradient, kReaderTotals, kGradient };

struct Params {
  int32_t precision, operation;
  int32_t kernel, stride;  // of the operation
  int32_t terms, channels, out_channels;
  int32_t images, side, lanes;
};

std::vector<Unit> units_of(const Params& params) {
  Unit unit{};
  unit.bias = unit.gamma = unit.beta = unit.mean = unit.variance = -1;
  unit.kernel = params.kernel;
  unit.in_channels = params.channels;
  unit.out_channels = params.out_channels;
  Unit term = unit;  // no weight of it is read
  term.weight = -1;
  return {unit, term};
}

Schedule schedule_of(const Params& params) {
  Schedule schedule;
  schedule.norms.push_back({0, Part::kCells, params.out_channels});
  Pass feed;
  feed.channels = params.channels;
  for (int32_t t = 0; t < params.terms; ++t) {
    schedule.tensors.push_back({0, params.channels, t + 1});
    schedule.norms.push_back({1, Part::kCells, params.channels});
    feed.terms.push_back({t, -1, 0, params.channels});
  }
  const int32_t out = params.terms;
  const bool convolves = params.operation == kConvolution;
  schedule.tensors.push_back({params.stride == 2 ? 1 : 0, params.out_channels, convolves ? 0 : -1});
  if (convolves) {
    feed.consumers = {{Use::kConv, 0, 0, params.kernel, params.stride, out, 0}};
  } else if (params.operation == kSum) {
    feed.kept = out;
  } else {
    const Use use = params.operation == kAverage ? Use::kAvgPool : Use::kMaxPool;
    feed.consumers = {{use, -1, -1, params.kernel, params.stride, out, -1}};
  }
  Pass reader;
  reader.halvings = schedule.tensors.back().halvings;
  reader.channels = params.out_channels;
  reader.terms = {{out, -1, 0, params.out_channels}};
  schedule.passes = {std::move(feed), std::move(reader)};
  return schedule;
}

class Lanes : public TrainingPlacement {
 public:
  Lanes(const Params& params, const std::vector<Unit>& units)
      : TrainingPlacement({units, Geometry(params.side, params.side, 1, 0)},
                          static_cast<Precision>(params.precision), params.images),
        inputs(views_) {
    const int32_t numbers = params.kernel * params.kernel * params.channels * params.out_channels;
    for (int32_t lane = 0; lane < params.lanes; ++lane) {
      Network& own = lanes_.emplace_back();
      own.schedule = schedule_of(params);
      own.weights = own.gradients = int64_t{lane} * numbers;
      place_tensors(own);
      place_packed(own);
      BackwardPlaces& to = backward_.emplace_back();
      to.reverse.readers.resize(own.schedule.tensors.size());
      to.reverse.readers.back() = {{1, 0, -1}};
      to.reverse.gradient = {0, 1};
      to.reverse.num_buffers = 2;
      place_backward(own, 0, to);
    }
  }

  const ViewInputs inputs;
};

class Case {
 public:
  explicit Case(const Params& params)
      : params_(params), units_(units_of(params)), lanes_(params, units_) {
    const Steps forward = steps_of(lanes_, precision(), {}, params.images);
    const BackwardSteps backward = backward_of({});
    tables_ = lanes_.take(Uploader::bytes_of(weight_rows({})) + DeviceSteps::bytes_of(forward) +
                          DeviceBackwardSteps::bytes_of(backward));
    moments_ = lanes_.take(forward.moments_bytes);
    partial_ = lanes_.take(backward.partial_bytes);
  }

  int64_t bytes() const { return lanes_.bytes(); }

  int64_t place(Where where, int32_t lane, int32_t index) const {
    const Network& network = lanes_.lanes()[static_cast<size_t>(lane)];
    const BackwardPlaces& back = lanes_.backward(static_cast<size_t>(lane));
    switch (where) {
      case kTerm:
        return network.tensors[static_cast<size_t>(index)];
      case kAffine:
        return network.affine[static_cast<size_t>(index) + 1];
      case kResult:
        return network.tensors.back();
      case kReaderGradient:
        return back.gradients[1];
      case kReaderTotals:
        return back.totals[1];
      case kGradient:
        return back.gradients[0];
    }
    return -1;
  }

  // Everything has its place from here on; weights are packed.
  void bind(std::byte* memory, const float* weights, float* weight_gradients, cudaStream_t stream) {
    BackwardAddresses addresses;
    addresses.forward = {memory, memory + moments_, weights, nullptr};
    addresses.partial = memory + partial_;
    addresses.gradients = weight_gradients;
    forward_ = steps_of(lanes_, precision(), addresses.forward, params_.images);
    backward_ = backward_of(addresses);
    const std::vector<WeightRow> packed = weight_rows(addresses.forward);
    Gatherer tables(memory + tables_);
    const WeightRow* rows = tables.add(packed);
    forward_rows_ = DeviceSteps::upload(forward_, tables);
    backward_rows_ = DeviceBackwardSteps::upload(backward_, tables);
    tables.copy(stream);
    check("weights",
          launch_pack_weights(precision(), rows, static_cast<int32_t>(packed.size()), stream));
    check("weights", cudaStreamSynchronize(stream));  // the tables are those of this function
  }

  void run(Kernel kernel, cudaStream_t stream) const {
    if (kernel == kForward || kernel == kNorms) {
      Step step = forward_.steps.front();
      if (kernel == kForward) step.norms.count = 0;
      if (kernel == kNorms) step.passes.clear();
      return forward_rows_.run(step, precision(), stream);
    }
    BackwardStep step = backward_.steps.back();
    step.sums.count = 0;
    if (kernel == kInputGradient) step.weights.count = 0;
    if (kernel == kWeightGradient) step.gradients.clear();
    backward_rows_.run(step, {}, nullptr, precision(), stream);
  }

 private:
  Precision precision() const { return static_cast<Precision>(params_.precision); }

  BackwardSteps backward_of(const BackwardAddresses& addresses) const {
    return backward_steps(lanes_, lanes_.backward_places(), lanes_.inputs, precision(), addresses,
                          params_.images);
  }

  std::vector<WeightRow> weight_rows(const Addresses& addresses) const {
    std::vector<WeightRow> rows;
    for (size_t lane = 0; lane < lanes_.lanes().size(); ++lane) {
      const Network& network = lanes_.lanes()[lane];
      const auto add = [&](const std::vector<int64_t>& packed, bool is_turned) {
        add_weight_rows(lanes_, addresses, lanes_.inputs, nullptr, network, packed, is_turned,
                        rows);
      };
      add(network.packed, false);
      add(lanes_.backward(lane).packed, true);
    }
    return rows;
  }

  const Params params_;
  const std::vector<Unit> units_;
  Lanes lanes_;
  int64_t tables_ = 0, moments_ = 0, partial_ = 0;
  Steps forward_;
  BackwardSteps backward_;
  DeviceSteps forward_rows_;
  DeviceBackwardSteps backward_rows_;
};

// What was wrong, for as long as nothing else is.
template <typename Work>
const char* guarded(const Work& work) {
  static std::string message;
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Where it is text that they return: null, or what was wrong.
EXPORTED const char* case_new(const Params* params, Case** made) {
  return guarded([&] { *made = new Case(*params); });
}
EXPORTED void case_delete(Case* of) { delete of; }
EXPORTED int64_t case_bytes(const Case* of) { return of->bytes(); }
EXPORTED int64_t case_place(const Case* of, int32_t where, int32_t lane, int32_t index) {
  return of->place(static_cast<Where>(where), lane, index);
}
EXPORTED const char* case_bind(Case* of, void* memory, const float* weights, float* gradients,
                               void* stream) {
  return guarded([&] {
    of->bind(static_cast<std::byte*>(memory), weights, gradients,
             static_cast<cudaStream_t>(stream));
  });
}
EXPORTED const char* case_run(const Case* of, int32_t kernel, void* stream) {
  return guarded([&] { of->run(static_cast<Kernel>(kernel), static_cast<cudaStream_t>(stream)); });
}
