// The Python module gradext._C: each room adds its own part.
#include "base/last_words.h"
#include "base/signals.h"
#include "benchmarks/bind.h"
#include "call_counts/call_counts.h"
#include "findings/bind.h"
#include "fingerprint/bind.h"
#include "graph/bind.h"
#include "guard/bind.h"
#include "recorder/python/bind.h"
#include "state/bind.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "gradext's compiled part: registers torch.ops.gradext and reads autograd state.";
  gradext::base::bind_signals(m);
  gradext::base::bind_last_words(m);
  gradext::state::bind(m);
  gradext::graph::bind(m);
  gradext::recorder::bind(m);
  gradext::guard::bind(m);
  gradext::findings::bind(m);
  gradext::fingerprint::bind(m);
  gradext::call_counts::bind(m);
  py::module_ testing =
      m.def_submodule("testing", "Doors that only gradext's own tests and benchmarks use.");
  gradext::recorder::bind_testing(testing);
  gradext::state::bind_testing(testing);
  gradext::guard::bind_testing(testing);
  gradext::findings::bind_testing(testing);
  gradext::fingerprint::bind_testing(testing);
  gradext::benchmarks::bind_testing(testing);
#ifdef GRADEXT_WITH_CUDA
  m.attr("WITH_CUDA") = true;
#else
  m.attr("WITH_CUDA") = false;
#endif
}
