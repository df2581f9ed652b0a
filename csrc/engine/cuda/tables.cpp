// SPDX-License-Identifier: MIT
#include "engine/cuda/tables.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

int64_t DeviceSteps::bytes_of(const Steps& steps) {
  return Uploader::bytes_of(steps.terms) + Uploader::bytes_of(steps.consumers) +
         Uploader::bytes_of(steps.passes) + Uploader::bytes_of(steps.norms) +
         Uploader::bytes_of(steps.heads);
}

DeviceSteps DeviceSteps::upload(const Steps& steps, Uploader& uploader) {
  DeviceSteps rows;
  rows.terms = uploader.add(steps.terms);
  rows.consumers = uploader.add(steps.consumers);
  rows.passes = uploader.add(steps.passes);
  rows.norms = uploader.add(steps.norms);
  rows.heads = uploader.add(steps.heads);
  return rows;
}

void DeviceSteps::run(const Step& step, Precision precision, cudaStream_t stream) const {
  for (const PassesStep& own : step.passes) {
    const PassLaunch launch{passes + own.first, terms,          consumers,
                            own.count,          own.most_tiles, own.most_bytes};
    check("pass", launch_passes(precision, own.columns, launch, stream));
  }
  check("batch norm",
        launch_norms(norms + step.norms.first, step.norms.count, step.norms.most_channels, stream));
}

HeadLaunch DeviceSteps::heads_of(const Step& step, int32_t classes, const Minibatch& minibatch,
                                 const Results& results) const {
  HeadLaunch launch{};
  launch.heads = heads + step.heads.first;
  launch.terms = terms;
  launch.labels = minibatch.labels;
  launch.num_heads = step.heads.count;
  launch.classes = classes;
  launch.most_channels = step.heads.most_channels;
  launch.most_terms = step.heads.most_terms;
  launch.sides = step.heads.sides;
  launch.num_images = results.num_images;
  launch.first_image = minibatch.first;
  launch.logits = results.logits;
  launch.loss = results.loss;
  launch.correct = results.correct;
  return launch;
}

int64_t DeviceBackwardSteps::bytes_of(const BackwardSteps& steps) {
  return Uploader::bytes_of(steps.terms) + Uploader::bytes_of(steps.readers) +
         Uploader::bytes_of(steps.results) + Uploader::bytes_of(steps.shares) +
         Uploader::bytes_of(steps.gradients) + Uploader::bytes_of(steps.sums) +
         Uploader::bytes_of(steps.mixing) + Uploader::bytes_of(steps.weights) +
         Uploader::bytes_of(steps.weight_sums) + Uploader::bytes_of(steps.heads);
}

DeviceBackwardSteps DeviceBackwardSteps::upload(const BackwardSteps& steps, Uploader& uploader) {
  DeviceBackwardSteps rows;
  rows.terms = uploader.add(steps.terms);
  rows.readers = uploader.add(steps.readers);
  rows.results = uploader.add(steps.results);
  rows.shares = uploader.add(steps.shares);
  rows.gradients = uploader.add(steps.gradients);
  rows.sums = uploader.add(steps.sums);
  rows.mixing = uploader.add(steps.mixing);
  rows.weights = uploader.add(steps.weights);
  rows.weight_sums = uploader.add(steps.weight_sums);
  rows.heads = uploader.add(steps.heads);
  return rows;
}

void DeviceBackwardSteps::run(const BackwardStep& step, const HeadLaunch& forward,
                              const float* logit_gradient, Precision precision,
                              cudaStream_t stream) const {
  if (step.heads.count > 0) {
    const HeadGradientLaunch launch{forward, heads + step.heads.first, logit_gradient};
    check("classifier's gradient", launch_head_gradients(precision, launch, stream));
    check("classifier's sums", launch_sums(sums + step.head_sums.first, step.head_sums.count,
                                           step.head_sums.most_numbers, stream));
  }
  for (const GradientsStep& own : step.gradients) {
    const GradientLaunch launch{
        gradients + own.first, terms,         shares, results, readers, own.count,
        own.most_tiles,        own.most_bytes};
    check("gradient", launch_gradients(precision, own.columns, launch, stream));
  }
  check("sums of gradients",
        launch_sums(sums + step.sums.first, step.sums.count, step.sums.most_numbers, stream));
  check("gradients of mixing weights",
        launch_mixing(mixing + step.mixing.first, step.mixing.count, stream));
  if (step.weights.count == 0) return;
  const WeightGradientLaunch launch{weights + step.weights.first,
                                    terms,
                                    results,
                                    readers,
                                    step.weights.count,
                                    step.weights.most_blocks,
                                    step.weights.most_bytes};
  check("weight gradient", launch_weight_gradients(precision, launch, stream));
  check("sums of weight gradients",
        launch_weight_sums(weight_sums + step.weights.first, step.weights.count,
                           step.weights.most_numbers, stream));
}

}  // namespace nasfast::cuda
