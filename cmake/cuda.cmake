# CUDA: whether it is built, for which devices, and the two builds that emulate it.
#
#   NNOPS_CUDA=auto      (default) on where nvcc is found and torch is a build for CUDA, whether or
#                        not there is a GPU: compiling takes minutes, and a torch for CPUs has no
#                        tensors that the kernels could be called with
#   NNOPS_CUDA=on, off   nvcc is required, whatever torch is, or not looked for
#   NNOPS_CUDA=emulated  csrc/cuda compiled by the C++ compiler for csrc/cuda/emulation, without
#                        nvcc and without CPU kernels: CPU tensors go to the CUDA kernels
#   NNOPS_CUDA=checked   the same, with every access of a kernel to memory looked at
#   NNOPS_CUDA_ARCHS     compute capabilities, such as 80;90 (or 80,90); the newest one's PTX is
#                        added, for devices still to come
#
# nnops_add_cuda_sources(<target>) compiles csrc/cuda/**/*.cu, one object a file, without a torch
# header, and links CUDA's runtime statically: the module imports under CPU builds of torch too.

set(NNOPS_CUDA "auto" CACHE STRING "CUDA kernels: auto, on, off, emulated or checked")
set_property(CACHE NNOPS_CUDA PROPERTY STRINGS auto on off emulated checked)
set(NNOPS_CUDA_ARCHS "" CACHE STRING "Compute capabilities to compile for; empty: the default list")

set(NNOPS_CUDA_DEFAULT_ARCHS 75 80 86 89 90 100 120)
set(NNOPS_CUDA_OLDEST_NVCC 12.0) # C++20

string(TOLOWER "${NNOPS_CUDA}" nnops_cuda_mode)
if(nnops_cuda_mode MATCHES "^(1|true|yes)$")
  set(nnops_cuda_mode on)
elseif(nnops_cuda_mode MATCHES "^(0|false|no)$")
  set(nnops_cuda_mode off)
elseif(NOT nnops_cuda_mode MATCHES "^(auto|on|off|emulated|checked)$")
  message(FATAL_ERROR "NNOPS_CUDA must be auto, on, off, emulated or checked, but is ${NNOPS_CUDA}")
endif()

set(NNOPS_CUDA_BUILD "not built") # what _C.build_info() says
set(NNOPS_CUDA_DEFINITIONS "")

if(nnops_cuda_mode STREQUAL "auto" AND torch_cuda STREQUAL "None")
  set(nnops_cuda_mode off)
  message(STATUS "nnops: this torch is for CPUs, so no CUDA kernels are built")
elseif(nnops_cuda_mode STREQUAL "auto")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(nnops_cuda_mode off)
    message(STATUS "nnops: no working nvcc was found, so no CUDA kernels are built")
  endif()
endif()

if(nnops_cuda_mode MATCHES "^(auto|on)$")
  # CMake's own test needs an architecture before the list below can be made.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES OFF)
  endif()
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL NNOPS_CUDA_OLDEST_NVCC)
    set(nnops_cuda_mode on)
  elseif(nnops_cuda_mode STREQUAL "on")
    message(FATAL_ERROR "nnops needs nvcc ${NNOPS_CUDA_OLDEST_NVCC} or later for its CUDA kernels, "
                        "but found ${CMAKE_CUDA_COMPILER_VERSION}")
  else()
    set(nnops_cuda_mode off)
    message(STATUS "nnops: nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old, so no CUDA kernels are "
                   "built")
  endif()
endif()

if(nnops_cuda_mode STREQUAL "on")
  find_package(CUDAToolkit REQUIRED)
  string(REPLACE "," ";" nnops_cuda_archs "${NNOPS_CUDA_ARCHS}")
  if(NOT nnops_cuda_archs)
    # Older versions of nvcc do not know the newest devices, newer ones not the oldest.
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch OUTPUT_VARIABLE known_archs
                    COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCHALL "[0-9]+" known_archs "${known_archs}")
    foreach(arch IN LISTS NNOPS_CUDA_DEFAULT_ARCHS)
      if(arch IN_LIST known_archs)
        list(APPEND nnops_cuda_archs ${arch})
      endif()
    endforeach()
  endif()
  list(SORT nnops_cuda_archs COMPARE NATURAL)
  list(GET nnops_cuda_archs -1 newest_arch)
  set(NNOPS_CUDA_ARCHITECTURES ${nnops_cuda_archs})
  list(TRANSFORM NNOPS_CUDA_ARCHITECTURES APPEND -real REGEX "^[0-9]+[a-z]?$")
  if(newest_arch MATCHES "^[0-9]+[a-z]?$")
    list(APPEND NNOPS_CUDA_ARCHITECTURES ${newest_arch}-virtual)
  endif()
  list(JOIN NNOPS_CUDA_ARCHITECTURES " " nnops_cuda_text)
  string(REGEX REPLACE "([0-9]+[a-z]?)-real" "sm_\\1" nnops_cuda_text "${nnops_cuda_text}")
  string(REGEX REPLACE "([0-9]+[a-z]?)-virtual" "compute_\\1" nnops_cuda_text "${nnops_cuda_text}")
  set(NNOPS_CUDA_BUILD "nvcc ${CMAKE_CUDA_COMPILER_VERSION}: ${nnops_cuda_text}")
  set(NNOPS_CUDA_DEFINITIONS NNOPS_HAVE_CUDA)
elseif(nnops_cuda_mode MATCHES "^(emulated|checked)$")
  set(NNOPS_CUDA_BUILD ${nnops_cuda_mode})
  set(NNOPS_CUDA_DEFINITIONS NNOPS_HAVE_CUDA NNOPS_CUDA_EMULATED)
endif()
message(STATUS "nnops: CUDA: ${NNOPS_CUDA_BUILD}")

file(GLOB_RECURSE nnops_cuda_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/cuda/*.cu")
file(GLOB nnops_emulation_sources CONFIGURE_DEPENDS
     "${PROJECT_SOURCE_DIR}/csrc/cuda/emulation/*.cpp")

function(nnops_add_cuda_sources target)
  if(nnops_cuda_mode STREQUAL "off")
    return()
  endif()
  set(kernels "${target}_cuda")
  add_library(${kernels} OBJECT ${nnops_cuda_sources})
  target_include_directories(${kernels} PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
  target_compile_definitions(${kernels} PRIVATE ${NNOPS_CUDA_DEFINITIONS})
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${kernels}>)
  if(nnops_cuda_mode STREQUAL "on")
    set_target_properties(
      ${kernels} PROPERTIES CUDA_ARCHITECTURES "${NNOPS_CUDA_ARCHITECTURES}" CUDA_STANDARD 20
                            CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)
    # One nvcc compiles for two devices at a time: the slowest file decides when the build ends.
    target_compile_options(${kernels} PRIVATE --threads=2 -Xcompiler=-Wall
                                              $<$<BOOL:${NNOPS_WERROR}>:-Werror=all-warnings>)
    # torch may have a CUDA runtime of its own in the process: this one stays inside.
    target_link_libraries(${target} PRIVATE CUDA::cudart_static)
    target_link_options(${target} PRIVATE -Wl,--exclude-libs,ALL)
    return()
  endif()

  set_source_files_properties(${nnops_cuda_sources} PROPERTIES LANGUAGE CXX)
  target_compile_options(${kernels} PRIVATE -O2 -g1 -Wall -Wextra -Wno-unknown-pragmas
                                            $<$<BOOL:${NNOPS_WERROR}>:-Werror>)
  if(nnops_cuda_mode STREQUAL "checked")
    # ThreadSanitizer's hooks at every load and store; csrc/cuda/emulation has its own in place of
    # libtsan. Scalars and vectors are to be read and written as the source says.
    target_compile_definitions(${kernels} PRIVATE NNOPS_CUDA_CHECKED)
    target_compile_options(${kernels} PRIVATE -O1 -fno-tree-vectorize -fno-tree-sra
                                              -fsanitize=thread)
    target_compile_definitions(${target} PRIVATE NNOPS_CUDA_CHECKED)
  endif()
  target_sources(${target} PRIVATE ${nnops_emulation_sources})
  # For LD_PRELOAD: libnnops_allocations.so tells check mode what torch allocated.
  add_library(nnops_allocations SHARED
              "${PROJECT_SOURCE_DIR}/csrc/cuda/emulation/preload/allocations.cpp")
endfunction()
