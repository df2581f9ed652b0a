// SPDX-License-Identifier: MIT
// All operators of the library, on one page. They are implemented in the files <operators>_cpu.cpp
// and <operators>_cuda.cpp; fake kernels are in nasfast/_register.py, documentation in
// nasfast/ops.py.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(nasfast, m) {
  // Every lane of one chunk of a program table on the minibatches of its data order.
  m.def(
      "run_program(Tensor table, Tensor arenas, Tensor images, Tensor labels, int[] sizes, "
      "Tensor? calibration, int[] calibration_sizes, int chunk, int lanes, str precision, "
      "str fixed, str last, int threads, int memory=0) -> (Tensor loss, Tensor correct)");
  // Every lane of a table whose chunks have one lane each, on its own row of weights.
  m.def(
      "score_lanes(Tensor table, Tensor weights, Tensor images, Tensor labels, int[] sizes, "
      "str precision, str fixed, str last, int threads, int memory=0) "
      "-> (Tensor loss, Tensor correct)");
  // Logits of every lane of a table on one minibatch.
  m.def(
      "subnet_forward(Tensor table, Tensor arenas, Tensor images, int lanes, int classes, "
      "str precision, str fixed, str last, int threads) -> Tensor");
  // SGD steps of every lane of a chunk, each on its own row of weights.
  m.def(
      "train_lanes(Tensor table, Tensor(a!) weights, Tensor(b!)? momenta, Tensor(c!)? "
      "gradient_sums, "
      "Tensor(d!) diverged_at, Tensor images, Tensor labels, int[] sizes, Tensor lr, int chunk, "
      "int first_step, float momentum, bool nesterov, float weight_decay, float clip, "
      "str precision, int threads, int memory=0) "
      "-> (Tensor loss, Tensor correct, Tensor gradient_l1, Tensor gradient_sum_l1)");
  // SGD steps on one weight set, the gradients of `paths` lanes added at each.
  m.def(
      "train_paths(Tensor table, Tensor(a!) weights, Tensor(b!)? momenta, Tensor images, "
      "Tensor labels, int[] sizes, int[] lanes, int paths, float lr, float momentum, "
      "bool nesterov, float weight_decay, float clip, str precision, int threads) "
      "-> (Tensor loss, Tensor correct, Tensor steps)");
  // Logits of one lane in training mode, and gradients of weights and mixing weights; `running` is
  // the arena once more, if its running statistics are to be updated.
  m.def(
      "program_gradients(Tensor table, Tensor arena, Tensor images, Tensor? labels, "
      "Tensor? grad_logits, Tensor? mixing, int lane, int classes, str precision, int threads, "
      "Tensor(a!)? running=None) -> (Tensor logits, Tensor grad_arena, Tensor grad_mixing)");
  // The weighted sum of the candidate operations of one edge; `saved` is for the way back.
  m.def(
      "mixed_op(Tensor x, Tensor weights, Tensor params, int[] kinds, int[] kernels, int[] fields, "
      "int threads) -> (Tensor out, Tensor statistics, Tensor saved)");
  m.def(
      "mixed_op_backward(Tensor grad, Tensor weights, Tensor params, Tensor statistics, "
      "Tensor saved, int[] kinds, int[] kernels, int[] fields, bool needs_x, int threads) "
      "-> (Tensor grad_x, Tensor grad_weights, Tensor grad_params)");
  // Why kernels of the current CUDA device do not take a mixed operation of features of these
  // sides; empty where they do. In builds with them alone.
  m.def(
      "mixed_op_refusal(int channels, int height, int width, bool bfloat16, int[] kinds, "
      "int[] kernels) -> str");
  m.def("relu_conv_bn(Tensor features, Tensor weight, int stride, float eps) -> Tensor");
  // Instruction sets: lines of "name\twhy it is not supported", then "chosen\tname".
  m.def("cpu_info() -> str");
  // The list of architectures that CUDA kernels are compiled for; in builds with them alone.
  m.def("cuda_archs() -> str");
}

// `import nasfast._ops` loads the library; there is nothing else in the module.
PyMODINIT_FUNC PyInit__ops() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_ops", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
