// SPDX-License-Identifier: MIT
#include "engine/cuda/relu_conv_bn.h"

#include "engine/cuda/error.h"
#include "engine/cuda/shared_memory.h"
#include "engine/cuda/tables.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

namespace {

enum Tensor : int32_t { kInput, kRaw };

Unit unit_of(const NormalisedConvolution& convolution) {
  Unit unit{};
  unit.bias = unit.gamma = unit.beta = unit.mean = unit.variance = -1;
  unit.kernel = convolution.kernel;
  unit.in_channels = convolution.in_channels;
  unit.out_channels = convolution.out_channels;
  return unit;
}

// One pass.
Schedule schedule_of(const NormalisedConvolution& convolution) {
  Schedule schedule;
  const int32_t halvings = convolution.stride == 2 ? 1 : 0;
  schedule.tensors = {{0, convolution.in_channels}, {halvings, convolution.out_channels, 0}};
  schedule.norms = {{0, Part::kCells, convolution.out_channels}};
  Pass& pass = schedule.passes.emplace_back();
  pass.channels = convolution.in_channels;
  pass.terms = {{kInput, -1, 0, convolution.in_channels}};
  pass.consumers = {{Use::kConv, 0, 0, convolution.kernel, convolution.stride, kRaw, 0}};
  return schedule;
}

}  // namespace

ReluConvBn::ReluConvBn(const NormalisedConvolution& convolution, const FeatureShape& shape)
    : convolution_(convolution),
      shape_(shape),
      unit_(unit_of(convolution)),
      placement_({&unit_, 1}, schedule_of(convolution), shape) {
  placement_.place_forward();
  const Steps steps = steps_of(placement_, shape.precision, {}, shape.sides.images);
  tables_ = placement_.take(Uploader::bytes_of(placement_.weight_rows({})) +
                            DeviceSteps::bytes_of(steps));
  moments_ = placement_.take(steps.moments_bytes);
  shared_bytes_ = steps.most_shared();
}

void ReluConvBn::run(const FeatureTensor& features, const float* weight, void* out,
                     std::byte* memory, cudaStream_t stream) const {
  require_shared_memory(shared_bytes_);
  const Addresses addresses = {memory, memory + moments_, weight, nullptr};
  const Network& network = placement_.network();
  check("features",
        launch_load_features(shape_.precision, features, shape_.sides, convolution_.in_channels,
                             addresses.at<void>(network.tensors[kInput]), stream));
  Steps steps = steps_of(placement_, shape_.precision, addresses, shape_.sides.images);
  for (NormRow& norm : steps.norms) norm.epsilon = convolution_.eps;
  Gatherer tables(addresses.at<std::byte>(tables_));
  const WeightRow* weights = tables.add(placement_.weight_rows(addresses));
  const DeviceSteps rows = DeviceSteps::upload(steps, tables);
  tables.copy_few(stream);
  check("weights", launch_pack_weights(shape_.precision, weights, 1, stream));
  for (const Step& step : steps.steps) rows.run(step, shape_.precision, stream);
  const Sides sides = convolution_.stride == 2 ? halved(shape_.sides) : shape_.sides;
  check("result", launch_store_features(shape_.precision, addresses.at<void>(network.tensors[kRaw]),
                                        addresses.at<double>(network.statistics[0]), sides,
                                        convolution_.out_channels, out, stream));
}

}  // namespace nasfast::cuda
