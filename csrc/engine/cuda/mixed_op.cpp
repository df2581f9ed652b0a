// SPDX-License-Identifier: MIT
#include "engine/cuda/mixed_op.h"

#include <algorithm>

#include "engine/cuda/error.h"
#include "engine/cuda/shared_memory.h"
#include "engine/cuda/tables.h"

namespace nasfast::cuda {

using namespace kernels::cuda;
using enum MixedSchedule::Tensor;
using enum MixedSchedule::Pass;

namespace {

// A value of so many channels is a tensor as it stands: there is nothing behind the last one.
bool is_tensor(int32_t channels) { return pitch_of(channels) == channels; }

// The input is copied to where it is saved; the result lies outside.
Schedule forward_schedule(const MixedSchedule& passes) {
  Schedule schedule = passes.schedule;
  schedule.tensors[kInput].external = -1;
  return schedule;
}

// As the way back sees it, the first pass keeps its input, which identities read too, and a third
// one reads the result. That one is not run: its gradient is given.
Schedule backward_schedule(const MixedSchedule& passes) {
  Schedule schedule = forward_schedule(passes);
  schedule.passes[kFeed].kept = kInput;
  nasfast::Pass& reader = schedule.passes.emplace_back();
  reader.channels = schedule.passes[kSum].channels;
  reader.terms = {{kOut, -1, 0, reader.channels}};
  return schedule;
}

// The result has one gradient, whether it is the pass's or its reader's.
Reverse reverse_of(const MixedSchedule& passes, bool wants_x) {
  Reverse reverse = passes.reverse(wants_x);
  reverse.gradient[kReader] = reverse.gradient[kSum];
  return reverse;
}

void clear(const char* what, float* numbers, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  check(what, cudaMemsetAsync(numbers, 0, static_cast<size_t>(count) * sizeof(float), stream));
}

}  // namespace

MixedForward::MixedForward(const MixedCandidates& candidates, const FeatureShape& shape)
    : shape_(shape),
      channels_(candidates.channels),
      passes_(candidates),
      placement_(passes_.units, forward_schedule(passes_), shape) {
  placement_.place_forward();
  if (!is_tensor(channels_)) placement_.place_external(kOut);
  const Steps steps = steps_of(placement_, shape.precision, {}, shape.sides.images);
  tables_ = placement_.take(Uploader::bytes_of(placement_.weight_rows({})) +
                            DeviceSteps::bytes_of(steps));
  moments_ = placement_.take(steps.moments_bytes);
  shared_bytes_ = steps.most_shared();
}

void MixedForward::run(const MixedTensors& tensors, std::byte* memory, cudaStream_t stream) const {
  require_shared_memory(shared_bytes_);
  Addresses addresses;
  addresses.memory = tensors.saved;
  addresses.split = saved_bytes();
  addresses.behind_split = memory;
  addresses.moments = addresses.at<std::byte>(moments_);
  addresses.arena = tensors.parameters;
  addresses.mixing = tensors.weights;
  const std::vector<int64_t>& places = placement_.network().tensors;
  check("features", launch_load_features(shape_.precision, tensors.x, shape_.sides, channels_,
                                         addresses.at<void>(places[kInput]), stream));
  Steps steps = steps_of(placement_, shape_.precision, addresses, shape_.sides.images);
  for (size_t n = 0; n < steps.norms.size(); ++n) {
    steps.norms[n].summary = tensors.statistics + static_cast<int64_t>(n) * 2 * channels_;
  }
  if (is_tensor(channels_)) steps.passes.back().kept = tensors.out;
  const std::vector<WeightRow> weights = placement_.weight_rows(addresses);
  Gatherer tables(addresses.at<std::byte>(tables_));
  const WeightRow* weight_rows = tables.add(weights);
  const DeviceSteps rows = DeviceSteps::upload(steps, tables);
  tables.copy_few(stream);
  check("weights", launch_pack_weights(shape_.precision, weight_rows,
                                       static_cast<int32_t>(weights.size()), stream));
  for (const Step& step : steps.steps) rows.run(step, shape_.precision, stream);
  if (is_tensor(channels_)) return;
  check("result", launch_store_features(shape_.precision, addresses.at<void>(places[kOut]), nullptr,
                                        shape_.sides, channels_, tensors.out, stream));
}

MixedBackward::MixedBackward(const MixedCandidates& candidates, const FeatureShape& shape,
                             bool wants_x)
    : shape_(shape),
      channels_(candidates.channels),
      num_candidates_(static_cast<int64_t>(candidates.all.size())),
      num_parameters_(candidates.num_parameters()),
      passes_(candidates),
      placement_(passes_.units, backward_schedule(passes_), shape) {
  placement_.place_reverse(reverse_of(passes_, wants_x), is_tensor(channels_) ? kFeed : -1);
  float any = 0;  // rows of mixing weights are made where their gradients are wanted
  BackwardAddresses nowhere;
  nowhere.mixing_gradient = &any;
  const BackwardSteps steps =
      backward_steps(placement_, placement_.backward_places(), placement_.inputs(), shape.precision,
                     nowhere, shape.sides.images);
  tables_ = placement_.take(Uploader::bytes_of(placement_.weight_rows({})) +
                            DeviceBackwardSteps::bytes_of(steps));
  partial_ = placement_.take(steps.partial_bytes);
  shared_bytes_ = steps.most_shared();
}

void MixedBackward::run(const MixedGradients& given, std::byte* memory, cudaStream_t stream) const {
  require_shared_memory(shared_bytes_);
  BackwardAddresses addresses;
  addresses.forward.memory = given.saved;
  addresses.forward.split = saved_bytes();
  addresses.forward.behind_split = memory;
  addresses.forward.arena = given.parameters;
  addresses.forward.mixing = given.weights;
  addresses.partial = addresses.forward.at<std::byte>(partial_);
  addresses.gradients = given.grad_parameters;
  addresses.mixing_gradient = given.grad_weights;
  clear("gradients of weights", given.grad_weights, num_candidates_, stream);
  clear("gradients of params", given.grad_parameters, num_parameters_, stream);
  const BackwardPlaces& places = placement_.backward(0);
  check("gradient",
        launch_load_features(shape_.precision, given.grad_out, shape_.sides, channels_,
                             addresses.forward.at<void>(places.gradients[kReader]), stream));
  BackwardSteps steps =
      backward_steps(placement_, placement_.backward_places(), placement_.inputs(),
                     shape_.precision, addresses, shape_.sides.images);
  const bool wants_x = given.grad_x != nullptr;
  if (wants_x && is_tensor(channels_)) steps.gradients.back().gradient = given.grad_x;
  const std::vector<WeightRow> weights = placement_.weight_rows(addresses.forward);
  Gatherer tables(addresses.forward.at<std::byte>(tables_));
  const WeightRow* weight_rows = tables.add(weights);
  const DeviceBackwardSteps rows = DeviceBackwardSteps::upload(steps, tables);
  tables.copy_few(stream);
  check("weights", launch_pack_weights(shape_.precision, weight_rows,
                                       static_cast<int32_t>(weights.size()), stream));
  // The reader comes first, on the way back.
  for (size_t step = 1; step < steps.steps.size(); ++step) {
    rows.run(steps.steps[step], {}, nullptr, shape_.precision, stream);
  }
  if (!wants_x || is_tensor(channels_)) return;
  check("gradient of x",
        launch_store_features(shape_.precision, addresses.forward.at<void>(places.gradients[kFeed]),
                              nullptr, shape_.sides, channels_, given.grad_x, stream));
}

void require_mixed_op_fits(const MixedCandidates& candidates, const FeatureShape& shape) {
  FeatureShape one_image = shape;
  one_image.sides.images = 1;
  require_shared_memory(MixedForward(candidates, one_image).shared_bytes());
  require_shared_memory(MixedBackward(candidates, one_image, true).shared_bytes());
}

}  // namespace nasfast::cuda
