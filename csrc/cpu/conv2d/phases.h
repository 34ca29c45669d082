// How conv2d's kernels tell how they share their work (`partition` in ops/conv2d.h): a phase is a
// parallel loop, its tasks are the iterations.
#pragma once

#include "cpu/simd.h"
#include "ops/conv2d.h"

NNOPS_BEGIN_KERNELS

using WorkUnit = Conv2dPhaseVisitor::Unit;
using Schedule = Conv2dPhaseVisitor::Schedule;

template <typename WorkOf>
NNOPS_INLINE void visit_phase(const Conv2dPhaseVisitor& visitor, const char* name, WorkUnit unit,
                              Schedule schedule, int64_t tasks, WorkOf work_of) {
  visitor.begin(visitor.context, name, unit, schedule);
  for (int64_t i = 0; i < tasks; ++i) visitor.task(visitor.context, work_of(i));
}

template <typename WorkOf>
NNOPS_INLINE void visit_products(const Conv2dPhaseVisitor& visitor, Schedule schedule,
                                 int64_t tasks, WorkOf products_of) {
  visit_phase(visitor, "products", WorkUnit::kProducts, schedule, tasks, products_of);
}

template <typename WorkOf>
NNOPS_INLINE void visit_copies(const Conv2dPhaseVisitor& visitor, const char* name, int64_t tasks,
                               WorkOf elements_of) {
  visit_phase(visitor, name, WorkUnit::kElements, Schedule::kStatic, tasks, elements_of);
}

NNOPS_END_KERNELS
