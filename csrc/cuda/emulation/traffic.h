// Counts how warps access memory: bank conflicts of shared memory, sectors of global memory.
//
// What the lanes of a warp do at one place in the code for the k-th time since the last barrier is
// taken for one request, as it is on a GPU unless lanes skip rounds of a loop.
//
//   shared   a request takes as many wavefronts as the busiest of 32 banks of 4 bytes has different
//            words; lanes that take 8 or 16 bytes come in 2 or 4 groups. At best one a group.
//   global   a request takes one sector for each 32 bytes (aligned) that it touches. At best as
//            many as its bytes fill.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cuda/emulation/place.h"

namespace nnops::emulation {

class Traffic {
 public:
  // Of a place in a kernel: units are wavefronts or sectors.
  struct Counts {
    int64_t requests = 0, lanes = 0, units = 0, least_units = 0;
  };

  // The file that NNOPS_CUDA_TRAFFIC names, or empty: nothing is to be counted.
  static std::string wanted_file();

  explicit Traffic(std::string file) : file_(std::move(file)) {}
  const std::string& file() const { return file_; }

  void begin_launch(const char* kernel) { kernel_ = kernel; }
  void access(int thread, Place place, bool shared, bool writes, uintptr_t address, unsigned bytes);
  // The threads of the block have met.
  void meet();

  // Appends to the file lines of: kernel, place, space, access, bytes per lane, requests, lanes,
  // units, least units.
  void write() const;

 private:
  struct Key {
    const char* kernel;
    int32_t place;
    bool shared, writes;
    unsigned bytes;
    auto operator<=>(const Key&) const = default;
  };
  struct Request {
    uint32_t lanes = 0;
    uintptr_t addresses[32];
  };
  // The requests of a warp at a place since the block last met, and where each lane is.
  struct Requests {
    std::vector<Request> requests;
    uint32_t done[32] = {};
  };
  struct Record {
    Place place;
    Counts counts;
    std::vector<Requests> warps = std::vector<Requests>(32);
  };

  static void count(const Key& key, const Request& request, Counts& counts);

  std::string file_;
  const char* kernel_ = "";
  std::map<Key, Record> records_;
};

}  // namespace nnops::emulation
