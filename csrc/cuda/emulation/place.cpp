#if defined(NNOPS_CUDA_CHECKED)  // for check mode alone

#include "cuda/emulation/place.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstring>

#include "cuda/emulation/checker.h"

namespace nnops::emulation {
namespace {

std::string code_text(const char* address) {
  Dl_info info;
  link_map* map = nullptr;
  if (dladdr1(address, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) == 0) return "?";
  char command[4096];
  std::snprintf(command, sizeof(command), "addr2line -i -e '%s' %#zx 2>/dev/null", info.dli_fname,
                static_cast<size_t>(address - reinterpret_cast<const char*>(map->l_addr)));
  FILE* const pipe = popen(command, "r");
  if (pipe == nullptr) return "?";
  std::string frames;
  char line[1024];
  while (std::fgets(line, sizeof(line), pipe) != nullptr) {
    std::string frame(line, std::strcspn(line, "\n ("));
    frame.erase(0, frame.find("csrc/") == std::string::npos ? 0 : frame.rfind("csrc/"));
    // The emulator's launch calls every kernel.
    if (frame.find("/c++/") != std::string::npos || frame.find("emulation/") == 10) continue;
    frames += (frames.empty() ? "" : ", inlined at ") + frame;
  }
  pclose(pipe);
  return frames.empty() ? "?" : frames;
}

}  // namespace

std::string Place::text() const {
  const char* address = anchor() + (distance_ >> 1);
  if (distance_ & 1) return emulation::text(std::bit_cast<Site>(address));
  return code_text(address - 1);  // the call, not what follows it
}

}  // namespace nnops::emulation

#endif  // NNOPS_CUDA_CHECKED
