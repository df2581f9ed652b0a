// SPDX-License-Identifier: MIT
#include "engine/training.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "engine/checks.h"
#include "engine/lane_step.h"
#include "engine/loaded_images.h"

namespace nasfast {

namespace {

using kernels::cpu::Kernels;

void check(const ProgramTable& table, const Images& images, const int64_t* labels,
           const RunOptions& options) {
  check_threads(options);
  check_minibatches(images);
  check_running_statistics(table, images, options.height, options.width);
  if (labels != nullptr) check_labels(table, images, labels);
}

struct Norms {
  double l1 = 0, square = 0;
};

// Both norms of a gradient.
Norms measure(std::span<const Span> trained, const float* gradient) {
  Norms norms;
  for (const auto [offset, size] : trained) {
    const float* g = gradient + offset;
    double l1 = 0, square = 0;
    for (int32_t k = 0; k < size; ++k) {
      l1 += std::abs(double{g[k]});
      square += double{g[k]} * double{g[k]};
    }
    norms.l1 += l1;
    norms.square += square;
  }
  return norms;
}

// Adds a gradient to a sum of gradients, and returns the sum of its absolute values.
double add_to_sum(std::span<const Span> trained, const float* gradient, float* sum) {
  double total = 0;
  for (const auto [offset, size] : trained) {
    double l1 = 0;
    for (int32_t k = 0; k < size; ++k) {
      sum[offset + k] += gradient[offset + k];
      l1 += std::abs(double{sum[offset + k]});
    }
    total += l1;
  }
  return total;
}

// As torch.optim.SGD: its operations on float32, in its order.
void update(std::span<const Span> trained, const float* gradient, double norm, const Sgd& sgd,
            double rate, float* weights, float* momentum) {
  const float factor =
      sgd.clip > 0 ? static_cast<float>(std::min(1.0, sgd.clip / (norm + 1e-6))) : 1.0f;
  const auto decay = static_cast<float>(sgd.weight_decay), keeps = static_cast<float>(sgd.momentum);
  const auto lr = static_cast<float>(rate);
  for (const auto [offset, size] : trained) {
    const float* g = gradient + offset;
    float* w = weights + offset;
    float* m = momentum != nullptr ? momentum + offset : nullptr;
    for (int32_t k = 0; k < size; ++k) {
      float step = g[k] * factor + decay * w[k];
      if (m != nullptr) {
        m[k] = keeps * m[k] + step;
        step = sgd.nesterov ? step + keeps * m[k] : m[k];
      }
      w[k] -= lr * step;
    }
  }
}

struct Setting {
  Setting(const ProgramTable& table, const RunOptions& options)
      : kernels(kernels::cpu::kernels_of(options.isa, options.precision)),
        geometry(options.height, options.width, table.positions().back().halvings,
                 table.settings().padding),
        team(options.threads, kernels.enter_thread, kernels.leave_thread) {}
  const Kernels& kernels;
  const Geometry geometry;
  Team team;
};

// One lane through all minibatches.
struct LaneRun {
  const TrainingNetwork& network;
  const LoadedImages& images;
  const int64_t* labels;
  const Sgd& sgd;
  const double* lr;
  float *weights, *momentum, *gradient_sum;
  StepRecords records;  // of this lane

  // Returns the step that diverged, or -1.
  int32_t run(LaneStep& step, std::vector<float>& gradient, Team* team) const {
    for (size_t s = 0; s < images.size(); ++s) {
      const Batch& batch = images.batch(s);
      step.forward(network, weights, batch, images.data(s), nullptr, team);
      const LaneStep::Result result = step.score(labels + images.first_image(s));
      records.loss[s] = result.loss;
      records.correct[s] = result.correct;
      if (!std::isfinite(result.loss)) return stop_at(s);
      step.backward(gradient.data(), nullptr, team);
      const Norms norms = measure(network.trained, gradient.data());
      records.gradient_l1[s] = norms.l1;
      if (!std::isfinite(norms.square)) return stop_at(s);
      if (gradient_sum != nullptr) {
        const double sum_l1 = add_to_sum(network.trained, gradient.data(), gradient_sum);
        if (records.gradient_sum_l1 != nullptr) records.gradient_sum_l1[s] = sum_l1;
      }
      step.update_statistics(weights);
      update(network.trained, gradient.data(), std::sqrt(norms.square), sgd, lr[s], weights,
             momentum);
    }
    return -1;
  }

  // Records of the steps from this one on, which are not taken.
  void leave_blank(size_t from) const {
    for (size_t s = from; s < images.size(); ++s) {
      records.loss[s] = kNan;
      records.correct[s] = 0;
      leave_gradient_blank(s);
    }
  }

 private:
  static constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

  // At a step that diverged: its loss is recorded as it came.
  int32_t stop_at(size_t step) const {
    leave_gradient_blank(step);
    leave_blank(step + 1);
    return static_cast<int32_t>(step);
  }
  void leave_gradient_blank(size_t step) const {
    records.gradient_l1[step] = kNan;
    if (records.gradient_sum_l1 != nullptr) records.gradient_sum_l1[step] = kNan;
  }
};

}  // namespace

void train_lanes(const ProgramTable& table, int32_t chunk, const TrainedWeights& trained,
                 const Images& images, const int64_t* labels, const double* lr, const Sgd& sgd,
                 const RunOptions& options, int32_t first_step, int32_t* diverged_at,
                 const StepRecords& records) {
  check(table, images, labels, options);
  const auto lanes = table.chunk(chunk);
  Setting setting(table, options);
  const LoadedImages loaded(table, images, options, setting.kernels, setting.team);
  std::vector<std::unique_ptr<TrainingNetwork>> networks;
  std::vector<const TrainingNetwork*> pointers;
  for (const int32_t lane : lanes) {
    const int32_t network = table.lanes()[static_cast<size_t>(lane)].network;
    networks.push_back(std::make_unique<TrainingNetwork>(table, network));
    pointers.push_back(networks.back().get());
  }
  // Lane by lane where there are enough of them, otherwise the threads share the blocks of a lane.
  const bool by_lane = lanes.size() >= static_cast<size_t>(setting.team.size());
  const int32_t teams = by_lane ? setting.team.size() : 1;
  const int32_t threads = by_lane ? 1 : setting.team.size();
  const auto arena_size = static_cast<int64_t>(table.settings().arena_size);
  const auto steps = static_cast<int64_t>(loaded.size());
  std::vector<std::unique_ptr<LaneStep>> workers;
  std::vector<std::vector<float>> gradients(static_cast<size_t>(teams));
  for (int32_t i = 0; i < teams; ++i) {
    workers.push_back(std::make_unique<LaneStep>(table, setting.kernels, setting.geometry,
                                                 options.precision, pointers, loaded.most_blocks(),
                                                 threads));
    gradients[static_cast<size_t>(i)].resize(static_cast<size_t>(arena_size));
  }
  const auto run_lane = [&](int32_t worker, int64_t lane, Team* team) {
    const auto row = [&](float* of_lanes) {
      return of_lanes != nullptr ? of_lanes + lane * arena_size : nullptr;
    };
    const LaneRun run = {
        *networks[static_cast<size_t>(lane)],
        loaded,
        labels,
        sgd,
        lr + lane * steps,
        row(trained.weights),
        row(trained.momentum),
        row(trained.gradient_sum),
        {records.loss + lane * steps, records.correct + lane * steps,
         records.gradient_l1 + lane * steps,
         records.gradient_sum_l1 != nullptr ? records.gradient_sum_l1 + lane * steps : nullptr}};
    if (diverged_at[lane] >= 0) return run.leave_blank(0);
    const auto at = static_cast<size_t>(worker);
    const int32_t diverged = run.run(*workers[at], gradients[at], team);
    if (diverged >= 0) diverged_at[lane] = first_step + diverged;
  };
  const auto count = static_cast<int64_t>(lanes.size());
  if (by_lane) {
    setting.team.run(count, [&](int32_t thread, int64_t lane) { run_lane(thread, lane, nullptr); });
  } else {
    for (int64_t lane = 0; lane < count; ++lane) run_lane(0, lane, &setting.team);
  }
}

int64_t train_paths(const ProgramTable& table, std::span<const int64_t> lanes, int64_t paths,
                    const TrainedWeights& trained, const Images& images, const int64_t* labels,
                    double lr, const Sgd& sgd, const RunOptions& options,
                    const StepRecords& records) {
  check(table, images, labels, options);
  const auto steps = static_cast<int64_t>(images.sizes.size());
  check_paths(table, lanes, steps, paths);
  Setting setting(table, options);
  const LoadedImages loaded(table, images, options, setting.kernels, setting.team);
  const auto count = static_cast<int64_t>(table.lanes().size());
  std::vector<std::unique_ptr<TrainingNetwork>> networks(static_cast<size_t>(count));
  std::vector<const TrainingNetwork*> pointers;
  for (const int64_t lane : lanes) {
    auto& network = networks[static_cast<size_t>(lane)];
    if (network != nullptr) continue;
    network =
        std::make_unique<TrainingNetwork>(table, table.lanes()[static_cast<size_t>(lane)].network);
    pointers.push_back(network.get());
  }
  LaneStep step(table, setting.kernels, setting.geometry, options.precision, pointers,
                loaded.most_blocks(), setting.team.size());
  const auto arena_size = static_cast<size_t>(table.settings().arena_size);
  std::vector<float> gradient(arena_size), total(paths > 1 ? arena_size : 0);
  std::vector<std::pair<int64_t, float>> before;  // running statistics: place, number
  for (int64_t s = 0; s < steps; ++s) {
    const auto at = static_cast<size_t>(s);
    std::vector<Span> spans;
    bool is_finite = true;
    before.clear();
    for (int64_t path = 0; path < paths; ++path) {
      const int64_t row = s * paths + path;
      const auto& network = *networks[static_cast<size_t>(lanes[static_cast<size_t>(row)])];
      step.forward(network, trained.weights, loaded.batch(at), loaded.data(at), nullptr,
                   &setting.team);
      const LaneStep::Result result = step.score(labels + loaded.first_image(at));
      records.loss[row] = result.loss;
      records.correct[row] = result.correct;
      is_finite = is_finite && std::isfinite(result.loss);
      if (!is_finite) break;
      step.backward(gradient.data(), nullptr, &setting.team);
      // Running statistics move with every path; should a later one diverge they come back.
      for (const auto [offset, size] : network.tracked) {
        for (int32_t k = 0; k < size; ++k) {
          before.emplace_back(offset + k, trained.weights[offset + k]);
        }
      }
      step.update_statistics(trained.weights);
      spans.insert(spans.end(), network.trained.begin(), network.trained.end());
      if (paths == 1) continue;
      for (const auto [offset, size] : network.trained) {
        float* to = total.data() + offset;
        for (int32_t k = 0; k < size; ++k) to[k] += gradient[static_cast<size_t>(offset + k)];
      }
    }
    spans = union_of(std::move(spans));
    std::vector<float>& sum = paths == 1 ? gradient : total;
    const Norms norms = measure(spans, sum.data());
    records.gradient_l1[s] = norms.l1;
    if (!is_finite || !std::isfinite(norms.square)) {
      for (auto old = before.rbegin(); old != before.rend(); ++old) {
        trained.weights[old->first] = old->second;
      }
      return s;
    }
    update(spans, sum.data(), std::sqrt(norms.square), sgd, lr, trained.weights, trained.momentum);
    if (paths == 1) continue;
    for (const auto [offset, size] : spans) std::fill_n(total.data() + offset, size, 0.0f);
  }
  return steps;
}

void program_gradients(const ProgramTable& table, int32_t lane, const float* arena,
                       const Images& images, const int64_t* labels, const float* logit_gradient,
                       const float* mixing, const RunOptions& options,
                       const GradientResults& results) {
  check(table, images, labels, options);
  require(images.sizes.size() == 1, "sizes: wanted one minibatch");
  require(mixing != nullptr || table.mixing_width() == 0,
          "mixing: wanted weights, as the table has mixed operations");
  Setting setting(table, options);
  const LoadedImages loaded(table, images, options, setting.kernels, setting.team);
  const TrainingNetwork network(table, table.lanes()[static_cast<size_t>(lane)].network);
  const TrainingNetwork* pointer = &network;
  LaneStep step(table, setting.kernels, setting.geometry, options.precision, {&pointer, 1},
                loaded.most_blocks(), setting.team.size());
  step.forward(network, arena, loaded.batch(0), loaded.data(0), mixing, &setting.team);
  std::copy(step.logits().begin(), step.logits().end(), results.logits);
  if (results.running != nullptr) step.update_statistics(results.running);
  if (labels == nullptr && logit_gradient == nullptr) return;
  if (labels != nullptr) {
    step.score(labels);
  } else {
    step.logit_gradient().assign(logit_gradient, logit_gradient + step.logits().size());
  }
  std::fill_n(results.gradient, table.settings().arena_size, 0.0f);
  if (results.mixing_gradient != nullptr) {
    std::fill_n(results.mixing_gradient, int64_t{table.num_cells()} * table.mixing_width(), 0.0f);
  }
  step.backward(results.gradient, results.mixing_gradient, &setting.team);
}

}  // namespace nasfast
