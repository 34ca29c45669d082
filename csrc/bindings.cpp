// nnops._C: importing it registers the operators under torch.ops.nnops; its functions only look.
//
// Nothing here lies on the path of an operator call, except that convolutions which could use TF32
// ask Python whether torch's switch allows it, and that runs of layers read their modules here.
#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/device_scope.h"
#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/isa.h"
#include "core/tf32.h"
#include "core/workspace.h"
#include "ops/conv2d_partition.h"
#include "ops/conv2d_precision.h"
#include "ops/conv2d_winners.h"
#include "ops/packed_weights.h"
#include "read_layers.h"

namespace py = pybind11;

#ifdef __clang__
#define NNOPS_COMPILER __VERSION__
#else
#define NNOPS_COMPILER "GCC " __VERSION__
#endif

namespace {

// Whether torch lets convolutions use TF32: what its switch, which has several names, adds up to.
bool read_tf32_switch() {
  const py::gil_scoped_acquire gil;
  try {
    const py::object cudnn = py::module_::import("torch.backends.cudnn");
    return cudnn.attr("conv").attr("fp32_precision").cast<std::string>() == "tf32";
  } catch (const std::exception&) {
    return false;
  }
}

using Image = std::pair<std::vector<int64_t>, std::vector<int64_t>>;
using IntList = std::vector<int64_t>;

nnops::Conv2dProblem make_problem(const std::string& op, const Image& input, const Image& weight,
                                  const Image& output, const IntList& stride,
                                  const IntList& padding, const IntList& dilation, int64_t groups,
                                  const std::string& dtype) {
  const auto image = [](const Image& each) {
    return nnops::Conv2dProblem::Image{each.first, each.second};
  };
  return {op,
          image(input),
          image(weight),
          image(output),
          stride,
          padding,
          dilation,
          groups,
          nnops::dtype_named(dtype)};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Loads nnops's operators and tells how they were built and what ran.";
  nnops::set_tf32_switch(read_tf32_switch);

  module.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{
            {"version", NNOPS_VERSION},   {"torch", NNOPS_BUILT_WITH_TORCH},
            {"compiler", NNOPS_COMPILER}, {"openmp", std::to_string(_OPENMP)},
            {"cuda", NNOPS_CUDA_BUILD},
        };
      },
      "Version, torch at build time, compiler, OpenMP date, CUDA.");
  module.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (const nnops::Isa isa : nnops::available_isas()) names.emplace_back(isa_name(isa));
        return names;
      },
      "ISA levels that are compiled in and that this CPU runs, lowest first.");
  module.def(
      "active_isa", [] { return nnops::isa_name(nnops::active_isa()); }, "The ISA level in use.");
  module.def("cpu_has_bfloat16_dots", &nnops::cpu_has_bfloat16_dots,
             "Whether this CPU has AVX512_BF16, which kernels of the AVX-512 level may use.");
  module.def("set_active_isa", &nnops::set_active_isa, py::arg("name"),
             "Switches the ISA level of the process; ValueError for an unavailable one.");
  module.def(
      "last_choice",
      [] {
        const nnops::Choice& choice = nnops::last_choice();
        return py::make_tuple(choice.op, choice.algorithm, isa_name(choice.isa));
      },
      "(operator, algorithm, ISA) of the calling thread's last kernel call.");
  module.def("force_algorithm", &nnops::force_algorithm, py::arg("op"), py::arg("algorithm"),
             "Makes `op` take this algorithm on the calling thread, an empty name ends it; returns "
             "the one before. ValueError for one that `op` does not have.");
  module.def("start_trace", &nnops::start_trace,
             "From now on the calls of the calling thread are kept with all reasons.");
  module.def(
      "stop_trace",
      [] {
        py::list calls;
        for (const nnops::TracedCall& call : nnops::stop_trace()) {
          std::vector<std::pair<std::string, std::string>> candidates;
          candidates.reserve(call.candidates.size());
          for (const auto& each : call.candidates) {
            candidates.emplace_back(each.algorithm, each.reason);
          }
          calls.append(py::make_tuple(call.op, nnops::dtype_name(call.dtype),
                                      nnops::isa_name(call.isa), call.threads, candidates));
        }
        return calls;
      },
      "The calls since start_trace: (operator, dtype, ISA, threads, [(algorithm, reason why not, "
      "empty for the one that ran)]).");
  module.def(
      "conv_precision", [] { return nnops::precision_name(nnops::conv_precision()); },
      "How exact conv2d's sums must be: 'highest' or 'high'.");
  module.def("set_conv_precision", &nnops::set_conv_precision, py::arg("name"),
             "Switches that for the whole process; ValueError for another name.");
  module.def("check_cuda", &nnops::check_cuda,
             "Launches an empty CUDA kernel and waits for it; RuntimeError where CUDA was not "
             "built, or with the driver's reason why it cannot run.");
  module.def("huge_pages", &nnops::huge_pages_enabled,
             "Whether large outputs ask the system for huge pages.");
  module.def("set_huge_pages", &nnops::set_huge_pages_enabled, py::arg("enabled"),
             "Switches that for the whole process.");
  module.def("kept_workspace_bytes", &nnops::kept_workspace_bytes,
             "Bytes of scratch memory that the calling thread keeps for its next calls.");
  module.attr("most_kept_workspace_bytes") = nnops::kMostKeptWorkspaceBytes;
  module.def("packed_weights_limit", &nnops::packed_weights_limit,
             "Bytes that conv2d's packed weights may take; 0 keeps none.");
  module.def("set_packed_weights_limit", &nnops::set_packed_weights_limit, py::arg("bytes"),
             "Sets it for the whole process and evicts what is too much.");
  module.def("clear_packed_weights", &nnops::clear_packed_weights, "Gives them all back.");
  module.def(
      "packed_weights_state",
      [] {
        const nnops::PackedWeightsState state = nnops::packed_weights_state();
        return py::make_tuple(state.bytes, state.weights, state.reused);
      },
      "(bytes in use, packed weights kept, calls that found theirs since the process began).");
  module.def("read_layers", &nnops::read_layers, py::arg("modules"), py::arg("kinds"),
             py::arg("attributes"), py::arg("with_weights"), py::arg("tensors"),
             "(parameters, what else a layer's numbers depend on) of plain modules of these kinds, "
             "None for others.");
  using Lists = std::map<std::string, std::vector<std::string>>;
  module.def(
      "algorithms",
      [] {
        Lists lists;
        for (const auto& list : nnops::algorithm_lists()) {
          lists[list.op] = nnops::kCudaEmulated ? list.cuda_algorithms : list.algorithms;
        }
        return lists;
      },
      "Operator to its algorithms for CPU tensors, in the order in which they are tried.");
  module.def(
      "cuda_algorithms",
      [] {
        Lists lists;
        if (!nnops::kHaveCuda) return lists;
        for (const auto& list : nnops::algorithm_lists()) lists[list.op] = list.cuda_algorithms;
        return lists;
      },
      "The same for CUDA tensors; empty where CUDA was not built.");
  py::class_<nnops::Conv2dProblem>(
      module, "Conv2dProblem",
      "A call of a pass of conv2d, tensors as (sizes, strides); `output` is the forward pass's.")
      .def(py::init(&make_problem), py::arg("op"), py::arg("input"), py::arg("weight"),
           py::arg("output"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
           py::arg("groups"), py::arg("dtype"));
  module.def(
      "conv2d_partition",
      [](const nnops::Conv2dProblem& problem, int threads) {
        const nnops::Partition partition = nnops::conv2d_partition(problem, threads);
        py::list phases;
        for (const nnops::PartitionPhase& phase : partition.phases) {
          phases.append(py::make_tuple(phase.name, phase.products, phase.dynamic, phase.work));
        }
        return py::make_tuple(partition.algorithm, partition.threads, phases);
      },
      py::arg("problem"), py::arg("threads"),
      "How the call would share its work: (algorithm, threads, [(phase, whether it counts "
      "products, whether its schedule is dynamic, work of each thread)]).");
  module.def("autotune", &nnops::autotune, "Whether conv2d takes the measured winners.");
  module.def("set_autotune", &nnops::set_autotune, py::arg("enabled"),
             "Switches that for the whole process.");
  module.def("conv2d_candidates", &nnops::conv2d_candidates, py::arg("problem"),
             py::arg("precision"),
             "The algorithms that could run the problem and that the precision allows; first the "
             "one that is chosen without measurements.");
  module.def("set_conv2d_winner", &nnops::set_conv2d_winner, py::arg("problem"),
             py::arg("precision"), py::arg("isa"), py::arg("threads"), py::arg("algorithm"),
             "Keeps the fastest algorithm of the problem; ValueError for an unknown name.");
  module.def("clear_conv2d_winners", &nnops::clear_conv2d_winners, "Forgets them all.");
}
