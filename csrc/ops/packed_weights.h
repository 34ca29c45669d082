// Packed weights of conv2d, kept from call to call.
//
// A weight that has the same bytes as when it was packed need not be packed again. Whether it has
// is asked of all its bytes at every call (core/fingerprint.h): reading a weight is several times
// cheaper than packing it, and nothing else can be trusted. Version counters do not count writes
// through `.data` or through a numpy array, and an address may belong to another tensor by now.
//
// A weight's address, the packing geometry and the packing function (so: dtype, ISA, algorithm
// and pass) say where its packed form would be. The first call with new bytes keeps their
// fingerprint alone, the next one with the same bytes the packed weights too: a weight that
// training changes at every step costs its fingerprint, one that stays (inference, frozen layers)
// is packed twice in all. Who can do without the packed form has it packed once, and asks ever less
// often for a weight that keeps changing.
//
// The least recently used go first when all would take more than the limit. What a call uses lives
// until the call ends, whatever others evict. Safe from many threads and across fork.
#pragma once

#include <cstdint>
#include <memory>

#include "core/workspace.h"
#include "ops/conv2d.h"

namespace nnops {

struct PackingRequest {
  void (*pack)(void* packed, const void* weight, const Conv2dGeometry& packing, int threads);
  int64_t packed_bytes;
  const void* weight;
  int64_t weight_bytes;    // of the block of memory that the weight fills; 0 if it has gaps
  Conv2dGeometry packing;  // what the order of the packed weights depends on
  // Of the whole batch, that each weight is multiplied with; fewer where packing costs more.
  int64_t pixels;
};

std::shared_ptr<const Workspace> packed_weights(const PackingRequest& request);
// The same for a caller who can do without: null where the bytes are not known to have stayed, and
// for weights that are not kept or take more than 16 MB packed.
std::shared_ptr<const Workspace> kept_packed_weights(const PackingRequest& request);

// Bytes that packed weights may take; 0 keeps none. NNOPS_PACKED_WEIGHTS sets it at the start.
int64_t packed_weights_limit();
void set_packed_weights_limit(int64_t bytes);
void clear_packed_weights();

struct PackedWeightsState {
  int64_t bytes;
  int64_t weights;  // of which the packed form is kept
  int64_t reused;   // calls that found theirs, since the process began
};
PackedWeightsState packed_weights_state();

}  // namespace nnops
